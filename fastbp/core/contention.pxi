# How many threads work: all of a team, or a single one, where others would not help. No bit depends on any of this.
#
# Contention: a thread that the operating system has taken off its core keeps all others waiting, barrier after barrier.
# A team that has waited for half of its time is disbanded, and single threads work for a while (the back-off). Then
# there are teams again; if a single thread was no faster, they are not checked for as long. Every back-off is twice as
# long as the one before it. Cores are the machine's: what one network has found holds for all of the process.
#
# Trials: whether a second thread pays for a small network depends on how this machine's cores share what they have. A
# network whose threads the user has not set tries: a few steps by one thread, a few by the team, three times in turns.

cdef double MIN_WAIT = 0.01, MIN_BACKOFF = 0.1, MAX_BACKOFF = 2  # seconds
cdef double MIN_WAIT_IN_TRIAL = 0.001
cdef double MIN_GAIN = 1.25             # of a team, in speed
cdef double TRIED_OPERATIONS = 1e8      # of a step: a larger one pays for a team anywhere
cdef enum:
    TRIALS = 6, STEPS_PER_TRIAL = 16    # three by one thread, three by the team

cdef struct ContentionPolicy:
    bint single             # whether single threads are to work
    double until            # when that ends, or until when teams are not checked
    double backoff          # seconds of the next back-off
    void *network           # whose team was disbanded last, ...
    double team_speed       # ... and its steps per second
    double waited, elapsed  # seconds of teams whose calls were too short to judge them

cdef struct ContentionCheck:   # of the threads that work now
    double since, waited       # when thread 0 began to count, and the seconds that it has waited from then on
    double started             # when the steps began, of which `steps_before` had been done
    intp steps_before
    double min_wait            # below that a team is not judged
    double unchecked_until     # until when the team is not checked
    double deadline            # when it is disbanded in any case, or 0
    int contended, disband     # flags: a thread has waited too long; the work ends after this step

cdef struct ThreadWait:  # of one thread: when it began to count, and how long it had waited before
    double since, waited

cdef struct Trial:       # of a network
    intp batch           # samples of a step: with others it tries again
    int team_size
    int left             # how many trials there are still to be; the even ones by a single thread
    bint single          # the outcome
    double until         # when it tries again, if that was a single thread
    double backoff       # seconds to the next time
    double single_time, team_time  # seconds of a step, the best

cdef ContentionPolicy CONTENTION  # of this process; without the GIL a race costs a back-off


cdef void start_check(ContentionCheck *check, bint trial, double deadline, double time, intp steps_done) noexcept:
    """Before the threads start; with a deadline they are not checked, but end their work then."""
    check.contended, check.disband, check.deadline = 0, 0, deadline
    check.unchecked_until = 1e300 if deadline > 0 else 0 if trial else CONTENTION.until
    check.min_wait = MIN_WAIT_IN_TRIAL if trial else MIN_WAIT
    check.started, check.steps_before = time, steps_done
    check.since, check.waited = time, 0
    if not trial:
        check.since, check.waited = time - CONTENTION.elapsed, CONTENTION.waited


cdef void back_off(const void *network, double time, double team_speed) noexcept:
    """Single threads work for a while."""
    CONTENTION.backoff = max(MIN_BACKOFF, CONTENTION.backoff)
    CONTENTION.single, CONTENTION.until = True, time + CONTENTION.backoff
    CONTENTION.network, CONTENTION.team_speed = <void *> network, team_speed
    CONTENTION.waited = CONTENTION.elapsed = 0


cdef void update_policy(const void *network, const ContentionCheck *check, bint single, intp steps_done) noexcept:
    """After the threads have ended: whether teams or single threads work next."""
    cdef double time = now(), elapsed = time - check.since
    cdef double speed = (steps_done - check.steps_before) / (time - check.started + 1e-9)
    if single:
        if CONTENTION.single and time >= CONTENTION.until:
            CONTENTION.single, CONTENTION.until = False, 0
            if CONTENTION.network == network and speed < CONTENTION.team_speed:
                CONTENTION.until = time + CONTENTION.backoff
            CONTENTION.backoff = min(MAX_BACKOFF, 2 * CONTENTION.backoff)
    elif check.disband or (time > CONTENTION.until and check.waited > MIN_WAIT and check.waited > 0.5 * elapsed):
        back_off(network, time, speed)
    elif elapsed < MIN_BACKOFF:
        CONTENTION.waited, CONTENTION.elapsed = check.waited, elapsed
    else:
        if time > CONTENTION.until:
            CONTENTION.backoff = 0
        CONTENTION.waited = CONTENTION.elapsed = 0


cdef void check_contention(ContentionCheck *check, ThreadWait *wait, const Thread *thread, double polled,
                           intp steps_done) noexcept nogil:
    """Between two steps: whether a thread has waited for half of its time, or the deadline is over.

    Thread 0 decides then that the team is disbanded. polled is a recent time of the clock.
    """
    cdef double time
    if thread.waited - wait.waited > check.min_wait:
        time = now()
        if time > check.unchecked_until and thread.waited - wait.waited > 0.5 * (time - wait.since):
            set_flag(&check.contended)
        elif time - wait.since > MIN_BACKOFF:
            wait.since, wait.waited = time, thread.waited
            if thread.number == 0:
                check.since = check.started = time
                check.steps_before = steps_done
    if thread.number == 0 and (is_set(&check.contended) or 0 < check.deadline < polled):
        set_flag(&check.disband)


cdef bint tries(Trial *trial, intp batch, int team_size, double time) noexcept:
    """Whether the next steps are a trial."""
    if trial.batch != batch or trial.team_size != team_size or (trial.single and time > trial.until):
        if trial.batch != batch or trial.team_size != team_size:
            trial.backoff = MIN_BACKOFF
        trial.batch, trial.team_size, trial.single, trial.left = batch, team_size, False, TRIALS
        trial.single_time = trial.team_time = 1e300
    return trial.left > 0


cdef void end_trial(Trial *trial, const void *network, const ContentionCheck *check, bint single,
                    intp steps_done) noexcept:
    """Note the time of a step, and after the last trial whether the team pays; a bad one is the last."""
    cdef double time = now(), seconds = (time - check.started) / max(<intp> 1, steps_done - check.steps_before)
    trial.left -= 1
    if single:
        trial.single_time = min(trial.single_time, seconds)
    else:
        trial.team_time = min(trial.team_time, seconds)
        if check.disband:
            back_off(network, time, 0)
        if check.disband or seconds > 2 * trial.single_time:
            trial.left = 0
    if trial.left == 0:
        trial.single = trial.single_time < MIN_GAIN * trial.team_time
        trial.until, trial.backoff = time + trial.backoff, min(MAX_BACKOFF, 2 * trial.backoff)
