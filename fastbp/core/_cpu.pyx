"""What this CPU and operating system can run. Compiled without any instruction-set flag, imported before a backend is.

CPUID tells the instructions, XGETBV the registers that the operating system saves when it switches threads: AVX needs
both (Intel, Software Developer's Manual, volume 1, sections 14.3 and 15.2; volume 2, CPUID, for the bits). The
compilers' own __builtin_cpu_supports does the same, but needs a library that clang-cl does not link.
"""

cdef extern from *:
    """
    enum { AVX2 = 1, FMA = 2, AVX512F = 4, AVX512DQ = 8, AVX512BW = 16, AVX512VL = 32, NEON = 64 };

    #if defined(__x86_64__) || defined(_M_X64)
    typedef struct { unsigned int a, b, c, d; } Registers;

    static Registers cpuid(unsigned int leaf)
    {
        Registers r;
        __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(0));
        return r;
    }

    static unsigned int saved_registers(void)
    {
        unsigned int low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return low;
    }

    static int probe(void)
    {
        enum { OSXSAVE = 1 << 27, YMM = 0x06, ZMM = 0xe6 }; /* YMM and XMM; these, the masks, and ZMM in two parts */
        const Registers basic = cpuid(1);
        if (!(basic.c & OSXSAVE)) return 0; /* there is no XGETBV */
        const unsigned int saved = saved_registers();
        if ((saved & YMM) != YMM) return 0;
        const Registers extended = cpuid(0).a >= 7 ? cpuid(7) : (Registers){0};
        int found = 0;
        if (basic.c & 1u << 12) found |= FMA;
        if (extended.b & 1u << 5) found |= AVX2;
        if ((saved & ZMM) != ZMM) return found;
        if (extended.b & 1u << 16) found |= AVX512F;
        if (extended.b & 1u << 17) found |= AVX512DQ;
        if (extended.b & 1u << 30) found |= AVX512BW;
        if (extended.b & 1u << 31) found |= AVX512VL;
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
