"""Who is in a model: any number of threads that read it, or one that changes it. Nobody waits here: who cannot is told.

The thread that changes it may come in again, from a callback for example. Compiled because a prediction takes two
microseconds; the critical sections are what free-threaded Python needs, and nothing elsewhere.
"""

cimport cython

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept


cdef class Gate:
    cdef unsigned long owner  # the thread that changes the model, 0 for none
    cdef int depth            # how often it has come in
    cdef int readers

    def enter_alone(self):
        """Come in to change the model; a RuntimeError if others are inside."""
        cdef unsigned long me = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.owner != me:
                if self.owner != 0 or self.readers > 0:
                    raise RuntimeError(
                        "the model is at work in another thread; give every thread that trains a model of its own"
                    )
                self.owner = me
            self.depth += 1

    def enter_shared(self):
        """Come in to read the model; how many read it now. A RuntimeError if another thread changes it."""
        cdef unsigned long me = PyThread_get_thread_ident()
        with cython.critical_section(self):
            if self.owner == me:
                self.depth += 1
                return 1
            if self.owner != 0:
                raise RuntimeError(
                    "the model is in training in another thread; predict before or after, or with a copy of it"
                )
            self.readers += 1
            return self.readers

    def leave(self):
        """Go out."""
        with cython.critical_section(self):
            if self.owner != PyThread_get_thread_ident():
                self.readers -= 1
                return
            self.depth -= 1
            if self.depth == 0:
                self.owner = 0
