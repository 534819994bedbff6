/* The reduction seam, for reducers in C: sums of a step's gradients over several processes.
 *
 * One thread calls the functions, in every step in this order: begin, reduce for each bucket of gradients as soon as they
 * are computed, wait. Each may return at once and work on; after wait the arrays hold the sums over all processes. Until
 * then nobody else writes to them. A result other than 0 ends the training before the step is applied.
 *
 * Network.train takes a PyCapsule of this struct with the name "fastbp.Reducer", or a Python object with methods of
 * these names (reduction.pxi).
 */
#ifndef FASTBP_REDUCER_H
#define FASTBP_REDUCER_H

#include <stddef.h>

typedef struct {
    void *context;
    /* header: total weight, weighted sum of the losses, processes whose loss is not finite, processes that stop */
    int (*begin)(void *context, double *header, ptrdiff_t count);
    /* bucket: count numbers of float (itemsize 4) or double (8) */
    int (*reduce)(void *context, void *bucket, ptrdiff_t count, int itemsize);
    int (*wait)(void *context);
} Reducer;

#endif
