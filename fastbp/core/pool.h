/* A pool of threads, where there is no OpenMP. Included by team.h, and built on how threads wait there.
 *
 * A worker starts when a team first needs it, and stays. Between two teams it waits awake for a moment, because a step
 * of a small network takes no longer than waking it, and then asleep. One team works at a time: who finds it taken
 * works alone, and no result depends on it.
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

enum { LARGEST_TEAM = 64 }; /* the kernels share no more than this, see CHUNKS; their products make do with it */
#define AWAKE 1e-3          /* seconds that an idle worker offers its core to others before it sleeps */

/* The flag has a cache line of its own, at which the worker looks while the caller holds the lock; no two workers share
 * a pair of lines, which CPUs fetch together. */
typedef struct __attribute__((aligned(128))) {
    int go; /* raised by the caller, taken down by the worker when it has done its share */
    __attribute__((aligned(64))) Lock lock;
    Condition condition; /* go has been raised */
} Worker;

static struct {
    int taken;          /* by the caller of a team, who alone touches what follows */
    int started, forks; /* workers, from number 1; whether forks are seen to */
    Task task;
    void *work;
    int team;
    ptrdiff_t *arrived;
    Worker workers[LARGEST_TEAM]; /* by their number in the team: 0 is the caller */
} pool;

static void wait_for_go(Worker *me)
{
    for (int spins = 0; spins < SPINS; spins++) {
        if (is_raised(&me->go)) return;
        RELAX();
    }
    const double until = clock_now() + AWAKE;
    while (clock_now() < until) {
        if (is_raised(&me->go)) return;
        YIELD();
    }
    LOCK(&me->lock);
    while (!is_raised(&me->go)) SLEEP(&me->condition, &me->lock);
    UNLOCK(&me->lock);
}

/* The kernels take up to 16 KiB of its stack: the smallest default, 128 KiB of musl, is enough. */
static THREAD live(void *worker)
{
    Worker *me = worker;
    for (;;) {
        wait_for_go(me);
        run_share(pool.task, pool.work, (int)(me - pool.workers), pool.team, pool.arrived);
        take_down(&me->go);
    }
    return 0;
}

#ifdef _WIN32
static int start_thread(Worker *worker)
{
    const HANDLE thread = CreateThread(NULL, 0, live, worker, 0, NULL);
    return thread != NULL && CloseHandle(thread);
}
#else
/* A child has none of its parent's threads, only their locks as they were. */
static void forget_workers(void) { pool.taken = pool.started = 0; }

/* Signals are for the threads that were there before, all but a worker's own faults. */
static int start_thread(Worker *worker)
{
    pthread_t thread;
    sigset_t blocked, before;
    if (!pool.forks && pthread_atfork(NULL, NULL, forget_workers)) return 0;
    pool.forks = 1;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    const int failed = pthread_create(&thread, NULL, live, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) pthread_detach(thread);
    return !failed;
}
#endif

/* How large a team there can be, of at most so many threads. */
static int gather_workers(int team)
{
    if (team > LARGEST_TEAM) team = LARGEST_TEAM;
    while (pool.started + 1 < team) {
        Worker *next = &pool.workers[pool.started + 1];
        next->go = 0;
        MAKE(&next->lock, &next->condition);
        if (!start_thread(next)) return pool.started + 1;
        pool.started++;
    }
    return team;
}

static void call_worker(Worker *worker)
{
    LOCK(&worker->lock);
    raise_flag(&worker->go);
    UNLOCK(&worker->lock);
    WAKE(&worker->condition);
}

static void wait_for_workers(int team)
{
    int spins = 0;
    for (int i = 1; i < team; i++) {
        while (is_raised(&pool.workers[i].go)) {
            if (spins++ < SPINS)
                RELAX();
            else
                YIELD();
        }
    }
}

static void run_in_pool(Task task, void *work, int team, ptrdiff_t *arrived)
{
    if (!take_workspace(&pool.taken)) {
        run_share(task, work, 0, 1, arrived);
        return;
    }
    pool.task = task, pool.work = work, pool.arrived = arrived;
    pool.team = team = gather_workers(team);
    for (int i = 1; i < team; i++) call_worker(&pool.workers[i]);
    run_share(task, work, 0, team, arrived);
    wait_for_workers(team);
    give_back(&pool.taken);
}

#endif
