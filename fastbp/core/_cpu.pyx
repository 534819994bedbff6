"""What this CPU and operating system can run. Compiled without any instruction-set flag, imported before a backend is.

The compiler's own probe is used: it asks CPUID for the instructions and XGETBV for the operating system's promise to
save their registers.
"""

cdef extern from *:
    """
    #if defined(__x86_64__) || defined(_M_X64)
    #define CPU_INIT() __builtin_cpu_init()
    #define HAS(feature) (__builtin_cpu_supports(feature) != 0)
    #else
    #define CPU_INIT() ((void)0)
    #define HAS(feature) 0
    #endif
    #define HAS_AVX2 HAS("avx2")
    #define HAS_FMA HAS("fma")
    #define HAS_AVX512F HAS("avx512f")
    #define HAS_AVX512DQ HAS("avx512dq")
    #define HAS_AVX512BW HAS("avx512bw")
    #define HAS_AVX512VL HAS("avx512vl")
    #ifdef __aarch64__
    #define HAS_NEON 1
    #else
    #define HAS_NEON 0
    #endif
    """
    void CPU_INIT()
    const bint HAS_AVX2, HAS_FMA, HAS_AVX512F, HAS_AVX512DQ, HAS_AVX512BW, HAS_AVX512VL, HAS_NEON


def features():
    """The instruction sets that backends ask for, each with whether this machine offers it."""
    CPU_INIT()
    return {
        "avx2": bool(HAS_AVX2),
        "fma": bool(HAS_FMA),
        "avx512f": bool(HAS_AVX512F),
        "avx512dq": bool(HAS_AVX512DQ),
        "avx512bw": bool(HAS_AVX512BW),
        "avx512vl": bool(HAS_AVX512VL),
        "neon": bool(HAS_NEON),
    }
