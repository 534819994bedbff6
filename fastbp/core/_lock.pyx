"""The lock of a model: any number of threads read it, or one changes it. None waits: an error says that it is in use.

Three kinds of access, each a context manager. ``shared`` reads parameters and running statistics. ``exclusive`` changes
them, or does a step; nothing else changes them meanwhile, not even a signal handler or a loss that the same thread
runs, while it may read. ``training`` is what ``fit`` has, from the first epoch to the last: it keeps other threads out,
and its own thread, in callbacks for example, may read and change.

The lock is compiled because a prediction takes two microseconds, and because Python handles signals between the steps
of Python code: an interrupt cannot fall between taking the lock and the block that gives it back. Its critical sections
are needed by free-threaded Python and cost nothing elsewhere.
"""

cimport cython

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef str ADVICE = "wait until that has ended, or give every thread a model of its own"
cdef str IN_TRAINING = f"the model is in training in another thread; {ADVICE}"
cdef str IN_USE = f"the model is in use in another thread; {ADVICE}"
cdef str IN_STEP = (
    "the model is in the middle of a step; what a loss, a metric or a signal handler calls meanwhile may read it only")
cdef str IN_FIT = "the model is in training already, by the fit that has called this; train_on_batch may be called here"

cdef enum Kind:
    SHARED, EXCLUSIVE, TRAINING


cdef class ReadWriteLock:
    cdef unsigned long writer  # the thread that changes or trains the model, 0 for none
    cdef bint trained          # whether that has access of the kind TRAINING
    cdef bint changed          # whether it is in a step or another change
    cdef dict readers          # how often each thread that reads the model has acquired the lock
    cdef long long changes     # how many times a thread has begun to change the model

    def __cinit__(self):
        self.readers = {}

    def shared(self, int threads):
        """Read the model; gives how many of these threads of the core to use.

        The threads that read the model at this moment share them.
        """
        return access(self, SHARED, threads)

    def exclusive(self):
        """Change the model."""
        return access(self, EXCLUSIVE, 0)

    def training(self):
        """Keep other threads out for as long as the model is trained."""
        return access(self, TRAINING, 0)

    cdef object acquire(self, Access access):
        cdef unsigned long thread = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.writer != 0 and self.writer != thread:
                raise RuntimeError(IN_TRAINING)
            if access.kind == SHARED:
                if self.writer == 0:
                    self.readers[thread] = self.readers.get(thread, 0) + 1
                    access.outer = True
                access.acquired = True
                return share(access.threads, <int> len(self.readers)) if access.outer else access.threads
            if self.changed or thread in self.readers:
                raise RuntimeError(IN_STEP)
            if self.readers:
                raise RuntimeError(IN_USE)
            if access.kind == TRAINING and self.trained:
                raise RuntimeError(IN_FIT)
            if self.writer == 0:
                self.writer, access.outer = thread, True
                self.changes += 1
            if access.kind == TRAINING:
                self.trained = True
            else:
                self.changed = True
            access.acquired = True

    cdef void release(self, Access access):
        cdef int times
        with cython.critical_section(self):
            access.acquired = False
            if access.kind == EXCLUSIVE:
                self.changed = False
            elif access.kind == TRAINING:
                self.trained = False
            elif access.outer:
                times = self.readers[access.thread] - 1
                if times:
                    self.readers[access.thread] = times
                else:
                    del self.readers[access.thread]
                return
            if access.outer:
                self.writer = 0

    def in_step(self):
        """Whether this thread is in the middle of a step or another change."""
        return self.changed and self.writer == PyThread_get_thread_ident()

    def version(self):
        """A number that is another one after every change; a RuntimeError if the model is being changed now."""
        with cython.critical_section(self):
            if self.writer != 0 and self.writer != PyThread_get_thread_ident():
                raise RuntimeError(IN_TRAINING)
            if self.changed:
                raise RuntimeError(IN_STEP)
            return self.changes

    def check_version(self, long long version):
        """Raise a RuntimeError if another thread has changed the model, or begun to, since it had this version."""
        with cython.critical_section(self):
            if self.changes != version:
                raise RuntimeError(IN_TRAINING)


cdef int share(int threads, int readers) noexcept:
    """What each of several readers has of these threads, at least one; the sign stays (`core.thread_limit`)."""
    return max(1, threads // readers) if threads > 0 else -max(1, -threads // readers)


@cython.freelist(8)
@cython.no_gc
@cython.auto_pickle(False)
@cython.final
cdef class Access:
    """What ``with`` enters. It gives the lock back when it is freed, should an interrupt keep ``with`` from it."""

    cdef ReadWriteLock lock
    cdef Kind kind
    cdef int threads
    cdef unsigned long thread
    cdef bint acquired, outer  # outer: whether the thread had no access before

    def __enter__(self):
        return self.lock.acquire(self)

    def __exit__(self, kind, error, traceback):
        self.lock.release(self)

    def __dealloc__(self):
        if self.acquired:
            self.lock.release(self)


cdef Access access(ReadWriteLock lock, Kind kind, int threads):
    cdef Access made = Access.__new__(Access)
    made.lock, made.kind, made.threads, made.thread = lock, kind, threads, PyThread_get_thread_ident()
    return made
