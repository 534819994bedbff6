"""The lock of a model: any number of threads read it, or one changes it. None waits: an error says that it is in use.

The thread that changes the model may acquire the lock again, from a callback for example. It is compiled because a
prediction takes two microseconds; its critical sections are needed by free-threaded Python and cost nothing elsewhere.
"""

cimport cython

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef class ReadWriteLock:
    cdef unsigned long writer  # the thread that changes the model, 0 for none
    cdef int depth             # how often it has acquired the lock
    cdef int readers

    def acquire_write(self):
        """For the thread that changes the model; a RuntimeError if other threads have the lock."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.writer != thread:
                if self.writer != 0 or self.readers > 0:
                    raise RuntimeError(
                        "the model is at work in another thread; give every thread that trains a model of its own"
                    )
                self.writer = thread
            self.depth += 1

    def acquire_read(self):
        """For a thread that reads the model; how many read it now. A RuntimeError if another thread changes it."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.writer == thread:
                self.depth += 1
                return 1
            if self.writer != 0:
                raise RuntimeError(
                    "the model is in training in another thread; predict before or after, or with a copy of it"
                )
            self.readers += 1
            return self.readers

    def release(self):
        """Once for every time that this thread has acquired the lock."""
        with cython.critical_section(self):
            if self.writer != PyThread_get_thread_ident():
                self.readers -= 1
                return
            self.depth -= 1
            if self.depth == 0:
                self.writer = 0
