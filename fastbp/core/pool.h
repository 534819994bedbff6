/* A pool of threads, for builds without OpenMP. Included by team.h, whose waiting it uses.
 *
 * A worker starts when a team first needs it, and is kept. Between two teams it first spins, because a step of a small
 * network takes no longer than waking a thread, and then sleeps. One team works at a time: a caller that finds the pool
 * in use works alone, and no result depends on that.
 */
#ifndef FASTBP_POOL_H
#define FASTBP_POOL_H

#ifdef _WIN32
typedef SRWLOCK Lock;
typedef CONDITION_VARIABLE Condition;
#define LOCK(lock) AcquireSRWLockExclusive(lock)
#define UNLOCK(lock) ReleaseSRWLockExclusive(lock)
#define SLEEP(condition, lock) SleepConditionVariableSRW(condition, lock, INFINITE, 0)
#define WAKE(condition) WakeConditionVariable(condition)
#define MAKE(lock, condition) (InitializeSRWLock(lock), InitializeConditionVariable(condition))
#define THREAD DWORD WINAPI
#else
#include <pthread.h>
#include <signal.h>
typedef pthread_mutex_t Lock;
typedef pthread_cond_t Condition;
#define LOCK(lock) pthread_mutex_lock(lock)
#define UNLOCK(lock) pthread_mutex_unlock(lock)
#define SLEEP(condition, lock) pthread_cond_wait(condition, lock)
#define WAKE(condition) pthread_cond_signal(condition)
#define MAKE(lock, condition) (pthread_mutex_init(lock, NULL), pthread_cond_init(condition, NULL))
#define THREAD void *
#endif

enum { MAX_TEAM = 64 }; /* the kernels split their work into at most 64 parts (CHUNKS in partition.pxi) */
#define IDLE_SECONDS 1e-3 /* that a worker without work yields its core before it sleeps */

/* has_task has a cache line of its own: the worker reads it while the caller holds the lock. Two workers share no pair
 * of lines, because CPUs fetch lines in pairs. */
typedef struct __attribute__((aligned(128))) {
    int has_task; /* set by the caller, cleared by the worker when it has done its part */
    __attribute__((aligned(64))) Lock lock;
    Condition condition; /* has_task has been set */
} Worker;

static struct {
    int in_use;                 /* the lock of the caller that has a team; the rest is this caller's */
    int started, fork_handled;  /* workers, numbered from 1; whether a fork resets the pool */
    Task task;
    void *work;
    int team_size;
    ptrdiff_t *arrived;
    Worker workers[MAX_TEAM]; /* by their number in the team: 0 is the caller */
} pool;

static void wait_for_task(Worker *worker)
{
    for (int spins = 0; spins < SPINS; spins++) {
        if (is_set(&worker->has_task)) return;
        RELAX();
    }
    const double until = clock_now() + IDLE_SECONDS;
    while (clock_now() < until) {
        if (is_set(&worker->has_task)) return;
        YIELD();
    }
    LOCK(&worker->lock);
    while (!is_set(&worker->has_task)) SLEEP(&worker->condition, &worker->lock);
    UNLOCK(&worker->lock);
}

/* The kernels use up to 100 KiB of its stack: the smallest default, 128 KiB of musl, is enough. */
static THREAD run_worker(void *argument)
{
    Worker *worker = argument;
    for (;;) {
        wait_for_task(worker);
        run_thread(pool.task, pool.work, (int)(worker - pool.workers), pool.team_size, pool.arrived);
        clear_flag(&worker->has_task);
    }
    return 0;
}

#ifdef _WIN32
static int start_thread(Worker *worker)
{
    const HANDLE thread = CreateThread(NULL, 0, run_worker, worker, 0, NULL);
    return thread != NULL && CloseHandle(thread);
}
#else
/* A forked child has none of its parent's threads, only copies of their locks. */
static void forget_workers(void) { pool.in_use = pool.started = 0; }

/* A worker blocks all signals but those of its own faults: signals are for the user's threads. */
static int start_thread(Worker *worker)
{
    pthread_t thread;
    sigset_t blocked, before;
    if (!pool.fork_handled && pthread_atfork(NULL, NULL, forget_workers)) return 0;
    pool.fork_handled = 1;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    const int failed = pthread_create(&thread, NULL, run_worker, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(thread);
    return !failed;
}
#endif

/* Start the workers that a team of this size still needs; how large a team there can be. */
static int start_workers(int team_size)
{
    if (team_size > MAX_TEAM) team_size = MAX_TEAM;
    while (pool.started + 1 < team_size) {
        Worker *next = &pool.workers[pool.started + 1];
        next->has_task = 0;
        MAKE(&next->lock, &next->condition);
        if (!start_thread(next)) return pool.started + 1;
        pool.started++;
    }
    return team_size;
}

static void wake_worker(Worker *worker)
{
    LOCK(&worker->lock);
    set_flag(&worker->has_task);
    UNLOCK(&worker->lock);
    WAKE(&worker->condition);
}

static void wait_for_workers(int team_size)
{
    int spins = 0;
    for (int i = 1; i < team_size; i++) {
        while (is_set(&pool.workers[i].has_task)) {
            if (spins++ < SPINS)
                RELAX();
            else
                YIELD();
        }
    }
}

static void run_in_pool(Task task, void *work, int team_size, ptrdiff_t *arrived)
{
    if (!try_lock(&pool.in_use)) {
        run_thread(task, work, 0, 1, arrived);
        return;
    }
    pool.task = task, pool.work = work, pool.arrived = arrived;
    pool.team_size = team_size = start_workers(team_size);
    for (int i = 1; i < team_size; i++) wake_worker(&pool.workers[i]);
    run_thread(task, work, 0, team_size, arrived);
    wait_for_workers(team_size);
    unlock(&pool.in_use);
}

#endif
