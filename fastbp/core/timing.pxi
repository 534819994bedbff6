# Time and interrupts: thread 0 charges seconds to phases for a profile, and checks for signals now and then.

cdef extern from "Python.h":
    int check_signals "PyErr_CheckSignals" () except -1  # runs handlers, in the main thread

cdef enum Phase:  # of Net.times; the last three repeat for every layer
    IN_GATHER, IN_LOSS, IN_WAITING, IN_FORWARD, IN_DX, IN_DWEIGHT

cdef double SECONDS_BETWEEN_SIGNAL_CHECKS = 0.05
cdef double OPERATIONS_BETWEEN_CLOCK_READINGS = 1e8  # a few milliseconds


cdef inline void charge_time(Net *net, const Thread *thread, int layer, int phase) noexcept nogil:
    """Charge the time since the last call to a phase."""
    cdef double time
    if net.times != NULL and thread.number == 0:
        time = now()
        net.times[phase + (IN_DWEIGHT - IN_WAITING) * layer] += time - net.charged
        net.charged = time


cdef object interrupt = None  # what a signal handler raised; only the main thread runs handlers


cdef bint interrupted() noexcept nogil:
    """Whether a signal handler raised; `raise_interrupt` raises that again, when the step has been left."""
    global interrupt
    with gil:
        try:
            check_signals()
        except BaseException as error:
            interrupt = error
            return True
        return False


cdef int raise_interrupt() except -1:
    global interrupt
    error, interrupt = interrupt, None
    raise error


cdef void poll_signals(Net *net, const Thread *thread, double operations) noexcept nogil:
    """Check for signals now and then: thread 0, which is the caller's, sets the flag that ends the work of all."""
    cdef double time
    if thread.number != 0 or net.stop == NULL:
        return
    net.unpolled += operations
    if net.unpolled >= OPERATIONS_BETWEEN_CLOCK_READINGS:
        net.unpolled = 0
        time = now()
        if time - net.polled > SECONDS_BETWEEN_SIGNAL_CHECKS:
            net.polled = time
            if interrupted():
                set_flag(net.stop)
