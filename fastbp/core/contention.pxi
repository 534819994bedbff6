# Contention: what a team does when other processes want its cores.
#
# A thread that the operating system has taken off its core keeps all others waiting, barrier after barrier. A team that
# has waited for half of its time is disbanded, and a single thread works for a while (the back-off). Then the team
# works again; if a single thread was no faster, the team is not checked for as long. Every back-off is twice as long as
# the one before it. No bit depends on any of this.

cdef double MIN_WAIT = 0.01, MIN_BACKOFF = 0.1, MAX_BACKOFF = 2  # seconds

cdef struct ContentionPolicy:  # of a network, from epoch to epoch
    bint single             # whether a single thread is to work
    double until            # when that ends, or until when the team is not checked
    double backoff          # seconds of the next back-off
    double team_speed       # steps per second of the team that was disbanded
    double waited, elapsed  # seconds of teams whose calls were too short to judge them
    intp steps              # steps of these

cdef struct ContentionCheck:   # of the threads that work now
    double since, waited       # when thread 0 began to count, and the seconds that it has waited from then on
    intp steps_before          # steps that were done then
    double unchecked_until     # until when the team is not checked
    double deadline            # when it is disbanded in any case, or 0
    int contended, disband     # flags: a thread has waited too long; the work ends after this step

cdef struct ThreadWait:  # of one thread: when it began to count, and how long it had waited before
    double since, waited


cdef void start_check(const ContentionPolicy *policy, ContentionCheck *check, bint single, double time,
                      intp steps_done) noexcept:
    """Before the threads start: from when on a team is checked, or when a single thread's back-off ends."""
    check.contended, check.disband, check.deadline = 0, 0, policy.until if single else 0
    check.unchecked_until = 1e300 if single else policy.until
    check.since, check.waited, check.steps_before = time - policy.elapsed, policy.waited, steps_done - policy.steps


cdef void update_policy(ContentionPolicy *policy, const ContentionCheck *check, bint single,
                        intp steps_done) noexcept:
    """After the threads have ended: whether a team or a single thread works next."""
    cdef double time = now(), elapsed = time - check.since
    cdef double speed = (steps_done - check.steps_before) / (elapsed + 1e-9)
    if single:
        if time < policy.until:
            return
        policy.single, policy.until = False, time + policy.backoff if speed < policy.team_speed else 0
        policy.backoff = min(MAX_BACKOFF, 2 * policy.backoff)
    elif check.disband or (time > policy.until and check.waited > MIN_WAIT and check.waited > 0.5 * elapsed):
        policy.backoff = max(MIN_BACKOFF, policy.backoff)
        policy.single, policy.until, policy.team_speed = True, time + policy.backoff, speed
    elif elapsed < MIN_BACKOFF:
        policy.waited, policy.elapsed, policy.steps = check.waited, elapsed, steps_done - check.steps_before
        return
    elif time > policy.until:
        policy.backoff = 0
    policy.waited = policy.elapsed = policy.steps = 0


cdef void check_contention(ContentionCheck *check, ThreadWait *wait, const Thread *thread, double polled,
                           intp steps_done) noexcept nogil:
    """Between two steps: whether a thread has waited for half of its time, or the deadline is over.

    Thread 0 decides then that the team is disbanded. polled is a recent time of the clock.
    """
    cdef double time
    if thread.waited - wait.waited > MIN_WAIT:
        time = now()
        if time > check.unchecked_until and thread.waited - wait.waited > 0.5 * (time - wait.since):
            set_flag(&check.contended)
        elif time - wait.since > MIN_BACKOFF:
            wait.since, wait.waited = time, thread.waited
            if thread.number == 0:
                check.since, check.steps_before = time, steps_done
    if thread.number == 0 and (is_set(&check.contended) or 0 < check.deadline < polled):
        set_flag(&check.disband)
