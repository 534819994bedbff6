"""The lock of a model: any number of threads read it, or one changes it. None waits: an error says that it is in use.

A thread may acquire the lock again, from a callback for example; it counts as one thread. The lock is compiled
because a prediction takes two microseconds; its critical sections are needed by free-threaded Python and cost nothing
elsewhere.
"""

cimport cython

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef str ADVICE = "wait until that has ended, or give every thread a model of its own"
cdef str IN_TRAINING = f"the model is in training in another thread; {ADVICE}"
cdef str IN_USE = f"the model is in use in another thread; {ADVICE}"


cdef class ReadWriteLock:
    cdef unsigned long writer  # the thread that changes the model, 0 for none
    cdef int depth             # how often it has acquired the lock
    cdef dict readers          # how often each thread that reads the model has acquired the lock
    cdef long long changes     # how many times a thread has begun to change the model

    def __cinit__(self):
        self.readers = {}

    def acquire_write(self):
        """For the thread that changes the model; a RuntimeError if other threads have the lock."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.writer != thread:
                if self.writer != 0:
                    raise RuntimeError(IN_TRAINING)
                if self.readers:
                    raise RuntimeError(IN_USE)
                self.writer = thread
                self.changes += 1
            self.depth += 1

    def acquire_read(self, int threads):
        """For a thread that reads the model; how many of these threads of the core it may use.

        The threads that read the model at this moment share them. A RuntimeError if another thread changes it.
        """
        cdef unsigned long thread = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.writer == thread:
                self.depth += 1
                return threads
            if self.writer != 0:
                raise RuntimeError(IN_TRAINING)
            self.readers[thread] = self.readers.get(thread, 0) + 1
            return max(1, threads // <int>len(self.readers))

    def release(self):
        """Once for every time that this thread has acquired the lock."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        cdef int times
        with cython.critical_section(self):
            if self.writer == thread:
                self.depth -= 1
                if self.depth == 0:
                    self.writer = 0
                return
            times = self.readers[thread]
            if times > 1:
                self.readers[thread] = times - 1
            else:
                del self.readers[thread]

    def version(self):
        """A number that is another one after every change; a RuntimeError if another thread changes the model now."""
        with cython.critical_section(self):
            if self.writer != 0 and self.writer != PyThread_get_thread_ident():
                raise RuntimeError(IN_TRAINING)
            return self.changes

    def check_version(self, long long version):
        """Raise a RuntimeError if another thread has changed the model, or begun to, since it had this version."""
        with cython.critical_section(self):
            if self.changes != version:
                raise RuntimeError(IN_TRAINING)
