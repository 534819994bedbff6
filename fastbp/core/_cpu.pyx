"""What this CPU and operating system can run. Compiled without any instruction-set flag, imported before a backend is.

CPUID tells the instructions, XGETBV the registers that the operating system saves when it switches threads: AVX needs
both (Intel, Software Developer's Manual, volume 1, sections 14.3 and 15.2). The compilers' own __builtin_cpu_supports
does the same, but needs a library that clang-cl does not link.
"""

cdef extern from *:
    """
    enum { AVX2 = 1, FMA = 2, AVX512F = 4, AVX512DQ = 8, AVX512BW = 16, AVX512VL = 32, NEON = 64 };

    #if defined(__x86_64__) || defined(_M_X64)
    #include <cpuid.h>

    static unsigned int saved_registers(void)
    {
        unsigned int low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return low;
    }

    static int probe(void)
    {
        enum { YMM = 0x06, ZMM = 0xe6 }; /* XMM and the upper halves; these, the mask registers and all of ZMM */
        unsigned int a, b, c, d;
        int found = 0;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
        const unsigned int saved = saved_registers();
        if ((saved & YMM) != YMM) return 0;
        if (c & bit_FMA) found |= FMA;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
        if (b & bit_AVX2) found |= AVX2;
        if ((saved & ZMM) != ZMM) return found;
        if (b & bit_AVX512F) found |= AVX512F;
        if (b & bit_AVX512DQ) found |= AVX512DQ;
        if (b & bit_AVX512BW) found |= AVX512BW;
        if (b & bit_AVX512VL) found |= AVX512VL;
        return found;
    }
    #elif defined(__aarch64__)
    static int probe(void) { return NEON; }
    #else
    static int probe(void) { return 0; }
    #endif
    """
    const int AVX2, FMA, AVX512F, AVX512DQ, AVX512BW, AVX512VL, NEON
    int probe()


def features():
    """The instruction sets that backends ask for, each with whether this machine offers it."""
    cdef int found = probe()
    return {
        "avx2": bool(found & AVX2),
        "fma": bool(found & FMA),
        "avx512f": bool(found & AVX512F),
        "avx512dq": bool(found & AVX512DQ),
        "avx512bw": bool(found & AVX512BW),
        "avx512vl": bool(found & AVX512VL),
        "neon": bool(found & NEON),
    }
