"""The compiled kernels: this file is built once per instruction set, as _avx512, _avx2, _neon and _generic.

It is the door: it takes arrays that the Python floor has checked, releases the GIL and calls the loops of the included
files, one idea each. Every function has its NumPy twin, with its documentation, in reference.py; arguments run outputs,
inputs, scalars, scratch, threads. `real` is float or double, one body for both.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cython.parallel cimport prange
from libc.math cimport (erf, erff, exp, expf, expm1, expm1f, fabs, fabsf, log, log1p, log1pf, pow, sqrt, sqrtf, tanh,
                        tanhf)
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy

from fastbp.core.plan import ELEMENTWISE_LOSSES, RULES, aligned

ctypedef fused real:
    float
    double

include "parallel.pxi"
include "activations.pxi"
include "gemm.pxi"
include "layers.pxi"
include "losses.pxi"
include "updates.pxi"
include "passes.pxi"
include "engine.pxi"
include "network.pxi"

cdef extern from *:
    """
    #ifdef _OPENMP
    #define HAVE_OPENMP 1
    #else
    #define HAVE_OPENMP 0
    #endif
    """
    const bint HAVE_OPENMP


def openmp():
    return HAVE_OPENMP


def target():
    return TARGET.decode()


def scratch_bytes(long m, long n, long k, long itemsize, int threads):
    return scratch_per_thread(m, n, k, itemsize) * threads


def peak_flops(dtype, long repeats):
    """Run 2 * lanes * chains * repeats fused multiply-adds on registers alone; returns the operations done."""
    cdef char sink[64]
    cdef bint single = dtype.itemsize == 4
    cdef double operations
    with nogil:
        operations = peak_float(repeats, <float *> sink) if single else peak_double(repeats, <double *> sink)
    return operations


def matmul(real[:, ::1] c, const real[:, :] a, const real[:, :] b, char[::1] scratch, int threads):
    cdef long size = sizeof(real)
    cdef Epilogue epilogue
    epilogue.after = NOTHING
    with nogil:
        gemm(&c[0, 0], c.shape[1], &a[0, 0], a.strides[0] // size, a.strides[1] // size, &b[0, 0],
             b.strides[0] // size, b.strides[1] // size, c.shape[0], c.shape[1], a.shape[1], &epilogue, <real *> NULL,
             &scratch[0], threads)


def dense_forward(real[:, ::1] y, real[:, ::1] z, const real[:, ::1] x, const real[:, ::1] weight,
                  const real[::1] bias, int activation, char[::1] scratch, int threads):
    with nogil:
        dense_forward_(&y[0, 0], &z[0, 0] if z is not None else NULL, &x[0, 0], &weight[0, 0],
                       &bias[0] if bias is not None else NULL, activation, x.shape[0], weight.shape[0],
                       weight.shape[1], &scratch[0], threads)


def dense_backward(real[:, ::1] dweight, real[::1] dbias, real[:, ::1] dx, const real[:, ::1] dz,
                   const real[:, ::1] x, const real[:, ::1] x_z, const real[:, ::1] weight, int prior,
                   char[::1] scratch, int threads):
    with nogil:
        dense_backward_(&dweight[0, 0], &dbias[0] if dbias is not None else NULL, &dx[0, 0] if dx is not None else NULL,
                        &dz[0, 0], &x[0, 0], &x_z[0, 0] if x_z is not None else NULL, &weight[0, 0], prior,
                        x.shape[0], weight.shape[0], weight.shape[1], &scratch[0], threads)


def activation_forward(real[:, ::1] y, const real[:, ::1] z, int kind, int threads):
    with nogil:
        activation_forward_(&y[0, 0], &z[0, 0], kind, y.shape[0] * y.shape[1], threads)


def activation_backward(real[:, ::1] dz, const real[:, ::1] dy, const real[:, ::1] y, const real[:, ::1] z, int kind,
                        int threads):
    with nogil:
        activation_backward_(&dz[0, 0], &dy[0, 0], &y[0, 0], &z[0, 0] if z is not None else NULL, kind,
                             dz.shape[0] * dz.shape[1], threads)


def dropout(real[:, ::1] y, const real[:, ::1] x, double p, uint64_t key, uint64_t step, int threads):
    with nogil:
        dropout_(&y[0, 0], &x[0, 0], p, key, step, y.shape[0] * y.shape[1], threads)


def batchnorm_forward(real[:, ::1] y, real[:, ::1] stats, const real[:, ::1] x, const real[::1] weight,
                      const real[::1] bias, double momentum, double eps, bint training, int threads):
    with nogil:
        batchnorm_forward_(&y[0, 0], &stats[0, 0], &x[0, 0], &weight[0], &bias[0], momentum, eps, training,
                           x.shape[0], x.shape[1], threads)


def batchnorm_backward(real[::1] dweight, real[::1] dbias, real[:, ::1] dx, const real[:, ::1] dy,
                       const real[:, ::1] x, const real[:, ::1] stats, const real[::1] weight, int threads):
    with nogil:
        batchnorm_backward_(&dweight[0], &dbias[0], &dx[0, 0] if dx is not None else NULL, &dy[0, 0], &x[0, 0],
                            &stats[0, 0], &weight[0], x.shape[0], x.shape[1], threads)


def layernorm_forward(real[:, ::1] y, real[:, ::1] rows, const real[:, ::1] x, const real[::1] weight,
                      const real[::1] bias, double eps, int threads):
    with nogil:
        layernorm_forward_(&y[0, 0], &rows[0, 0], &x[0, 0], &weight[0], &bias[0], eps, x.shape[0], x.shape[1],
                           threads)


def layernorm_backward(real[::1] dweight, real[::1] dbias, real[:, ::1] dx, const real[:, ::1] dy,
                       const real[:, ::1] x, const real[:, ::1] rows, const real[::1] weight, int threads):
    with nogil:
        layernorm_backward_(&dweight[0], &dbias[0], &dx[0, 0] if dx is not None else NULL, &dy[0, 0], &x[0, 0],
                            &rows[0, 0], &weight[0], x.shape[0], x.shape[1], threads)


def cross_entropy(real[:, ::1] dlogits, const real[:, ::1] logits, const int64_t[::1] labels,
                  const real[::1] class_weight, double label_smoothing, int threads):
    cdef double loss
    with nogil:
        loss = cross_entropy_(&dlogits[0, 0], &logits[0, 0], &labels[0],
                              &class_weight[0] if class_weight is not None else NULL, label_smoothing,
                              logits.shape[0], logits.shape[1], threads)
    return loss


def elementwise_loss(real[:, ::1] dpred, const real[:, ::1] pred, const real[:, ::1] target, int kind,
                     double parameter, int threads):
    cdef double loss
    with nogil:
        loss = elementwise_loss_(&dpred[0, 0], &pred[0, 0], &target[0, 0], kind, parameter,
                                 pred.shape[0] * pred.shape[1], threads)
    return loss


def sgd_update(real[::1] param, real[::1] velocity, const real[::1] grad, double lr, double momentum, bint nesterov,
               double weight_decay, double grad_scale, int threads):
    cdef Update u
    u.rule, u.lr, u.momentum, u.nesterov = SGD, lr, momentum, nesterov
    u.weight_decay, u.grad_scale = weight_decay, grad_scale
    u.first, u.second = <void *> (&velocity[0] if velocity is not None else NULL), NULL
    with nogil:
        apply_update(&u, &param[0], &grad[0], param.shape[0], threads)


def adam_update(real[::1] param, real[::1] m, real[::1] v, const real[::1] grad, double lr, double beta1, double beta2,
                double eps, double weight_decay, bint decoupled, long step, double grad_scale, int threads):
    cdef Update u
    u.rule, u.lr, u.beta1, u.beta2, u.eps, u.step = ADAM, lr, beta1, beta2, eps, step
    u.weight_decay, u.decoupled, u.grad_scale = weight_decay, decoupled, grad_scale
    u.first, u.second = <void *> &m[0], <void *> &v[0]
    with nogil:
        apply_update(&u, &param[0], &grad[0], param.shape[0], threads)


def rmsprop_update(real[::1] param, real[::1] square, real[::1] velocity, const real[::1] grad, double lr,
                   double alpha, double eps, double momentum, double weight_decay, double grad_scale, int threads):
    cdef Update u
    u.rule, u.lr, u.alpha, u.eps, u.momentum = RMSPROP, lr, alpha, eps, momentum
    u.weight_decay, u.grad_scale = weight_decay, grad_scale
    u.first, u.second = <void *> &square[0], <void *> (&velocity[0] if velocity is not None else NULL)
    with nogil:
        apply_update(&u, &param[0], &grad[0], param.shape[0], threads)


def adagrad_update(real[::1] param, real[::1] total, const real[::1] grad, double lr, double eps, double weight_decay,
                   double grad_scale, int threads):
    cdef Update u
    u.rule, u.lr, u.eps, u.weight_decay, u.grad_scale = ADAGRAD, lr, eps, weight_decay, grad_scale
    u.first, u.second = <void *> &total[0], NULL
    with nogil:
        apply_update(&u, &param[0], &grad[0], param.shape[0], threads)


def squared_norm(const real[::1] x, int threads):
    cdef double result
    with nogil:
        result = squared_norm_(&x[0], x.shape[0], threads)
    return result


def all_finite(x):
    cdef const char *data = <const char *> address(x)
    cdef long n = x.size
    cdef bint single = x.dtype.itemsize == 4, result
    if n == 0:
        return True
    with nogil:
        result = all_finite_chunk(<const float *> data, n) if single else all_finite_chunk(<const double *> data, n)
    return result
