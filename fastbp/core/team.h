/* A team of threads: the one place where threads start, wait for each other and change how the CPU rounds.
 * They are OpenMP's, or where the compiler was not told of it those of pool.h.
 *
 * A task runs once in every thread of its team, told by its Share which part is its own. Inside a task threads wait for
 * each other at a counter in user space: a step of a small network takes microseconds, and so does waking a thread.
 */
#ifndef FASTBP_TEAM_H
#define FASTBP_TEAM_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#define HAVE_OPENMP 1
#else
#define HAVE_OPENMP 0
#endif
#ifdef _WIN32
#define NOMINMAX
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#define YIELD() SwitchToThread()
#else
#include <sched.h>
#define YIELD() sched_yield()
#endif

/* Denormal numbers (below 1e-38 in float32) are treated as zero while a task runs: they cost up to a hundred cycles
 * each and mean nothing to a gradient. The caller's state is put back. */
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define RELAX() _mm_pause()
#define FLUSH_TO_ZERO 0x8040 /* FTZ: results, DAZ: operands */
static inline uint64_t flush_denormals(void)
{
    const unsigned int before = _mm_getcsr();
    if ((before & FLUSH_TO_ZERO) != FLUSH_TO_ZERO) _mm_setcsr(before | FLUSH_TO_ZERO);
    return before;
}
static inline void restore_denormals(uint64_t before)
{
    if ((before & FLUSH_TO_ZERO) != FLUSH_TO_ZERO) _mm_setcsr((unsigned int)before);
}
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("yield")
#define FLUSH_TO_ZERO ((uint64_t)1 << 24) /* FZ */
static inline uint64_t flush_denormals(void)
{
    uint64_t before;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before | FLUSH_TO_ZERO));
    return before;
}
static inline void restore_denormals(uint64_t before) { __asm__ __volatile__("msr fpcr, %0" : : "r"(before)); }
#else
#define RELAX()
static inline uint64_t flush_denormals(void) { return 0; }
static inline void restore_denormals(uint64_t before) { (void)before; }
#endif

/* Seconds on a clock that nobody sets. */
static inline double clock_now(void)
{
#ifdef _WIN32
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (double)count.QuadPart / (double)per_second.QuadPart;
#else
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#endif
}

typedef struct {
    int number, team;   /* this thread, of how many */
    ptrdiff_t round;    /* how often this thread has met the others */
    ptrdiff_t *arrived; /* shared: arrivals since the team started */
    double lost;        /* seconds that it has offered its core to others, waiting for the team */
} Share;

typedef void (*Task)(void *work, Share *me);

enum { SPINS = 2000 }; /* about 10 us; then the core is offered to whoever else wants it, perhaps one of the team */

/* Wait until every thread of the team has come here. */
static void meet(Share *me)
{
    if (me->team == 1) return;
    const ptrdiff_t all = ++me->round * me->team;
    __atomic_add_fetch(me->arrived, 1, __ATOMIC_ACQ_REL);
    for (int spins = 0; spins < SPINS; spins++) {
        if (__atomic_load_n(me->arrived, __ATOMIC_ACQUIRE) >= all) return;
        RELAX();
    }
    const double since = clock_now();
    while (__atomic_load_n(me->arrived, __ATOMIC_ACQUIRE) < all) YIELD();
    me->lost += clock_now() - since;
}

/* How many threads others have left to this one. */
static inline int most_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return INT_MAX;
#endif
}

/* A flag that one thread raises and the others look at. */
static inline void raise_flag(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }
static inline void take_down(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
static inline int is_raised(const int *flag) { return flag && __atomic_load_n(flag, __ATOMIC_ACQUIRE); }

/* A workspace that one thread at a time may take; nobody waits for it. */
static inline int take_workspace(int *taken)
{
    int nobody = 0;
    return __atomic_compare_exchange_n(taken, &nobody, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline void give_back(int *taken) { take_down(taken); }

static void run_share(Task task, void *work, int number, int team, ptrdiff_t *arrived)
{
    Share me = {number, team, 0, arrived, 0};
    const uint64_t before = flush_denormals();
    task(work, &me);
    restore_denormals(before);
}

#ifndef _OPENMP
#include "pool.h"
#endif

/* Run the task in a team of at most so many threads; a team of one is the caller alone and costs nothing. */
static void run_team(Task task, void *work, int team)
{
    ptrdiff_t arrived[16] = {0}; /* two cache lines, so that one of them holds the counter and nothing else */
    if (team <= 1) {
        run_share(task, work, 0, 1, arrived + 8);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(team)
    run_share(task, work, omp_get_thread_num(), omp_get_num_threads(), arrived + 8);
#else
    run_in_pool(task, work, team, arrived + 8);
#endif
}

#endif
