/* A team of threads: the only place where threads start, wait for each other and change how the CPU rounds.
 * They are OpenMP's threads or, where the compiler was not asked for OpenMP, those of pool.h.
 *
 * A task runs once in every thread of its team; its Thread record says which one it is. Inside a task the threads meet at
 * barriers, a counter in user space: a step of a small network takes microseconds, and so does waking a thread.
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
 * each and mean nothing to a gradient. The caller's state is restored. */
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

/* Seconds on a monotonic clock. */
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
    int number, team_size; /* this thread's number, and how many there are */
    ptrdiff_t barriers;    /* how many barriers this thread has reached */
    ptrdiff_t *arrived;    /* shared: arrivals at all barriers since the team started */
    double waited;         /* seconds that it has yielded its core while it waited at barriers */
} Thread;

typedef void (*Task)(void *work, Thread *thread);

enum { SPINS = 2000 }; /* about 10 us; after that a waiting thread yields its core, which a thread of the team may need */

/* Wait until every thread of the team has reached this barrier. */
static void barrier(Thread *thread)
{
    if (thread->team_size == 1) return;
    const ptrdiff_t all = ++thread->barriers * thread->team_size;
    __atomic_add_fetch(thread->arrived, 1, __ATOMIC_ACQ_REL);
    for (int spins = 0; spins < SPINS; spins++) {
        if (__atomic_load_n(thread->arrived, __ATOMIC_ACQUIRE) >= all) return;
        RELAX();
    }
    const double since = clock_now();
    while (__atomic_load_n(thread->arrived, __ATOMIC_ACQUIRE) < all) YIELD();
    thread->waited += clock_now() - since;
}

/* How many threads OpenMP allows here; other libraries may have set its limit. */
static inline int max_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return INT_MAX;
#endif
}

/* A flag that one thread sets and the others read. */
static inline void set_flag(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }
static inline void clear_flag(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
static inline int is_set(const int *flag) { return flag && __atomic_load_n(flag, __ATOMIC_ACQUIRE); }

/* A lock that is never waited for: 1 if it was free and is ours now. */
static inline int try_lock(int *lock)
{
    int unlocked = 0;
    return __atomic_compare_exchange_n(lock, &unlocked, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline void unlock(int *lock) { clear_flag(lock); }

static void run_thread(Task task, void *work, int number, int team_size, ptrdiff_t *arrived)
{
    Thread thread = {number, team_size, 0, arrived, 0};
    const uint64_t before = flush_denormals();
    task(work, &thread);
    restore_denormals(before);
}

#ifndef _OPENMP
#include "pool.h"
#endif

/* Run the task in a team of at most team_size threads; a team of one is the caller alone and costs nothing. */
static void run_team(Task task, void *work, int team_size)
{
    ptrdiff_t arrived[16] = {0}; /* two cache lines, so that one of them holds the counter and nothing else */
    if (team_size <= 1) {
        run_thread(task, work, 0, 1, arrived + 8);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(team_size)
    run_thread(task, work, omp_get_thread_num(), omp_get_num_threads(), arrived + 8);
#else
    run_in_pool(task, work, team_size, arrived + 8);
#endif
}

#endif
