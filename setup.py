"""The compiled core: one Cython source, built once per instruction set. Metadata is in pyproject.toml."""

import os
import platform
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Contraction is off and fused multiply-add explicit, so that an element has the same bits wherever it is computed. No
# lines for a debugger: they are larger than the code, and name the folder in which it was built.
COMMON = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]

# The one table of per-backend flags. What a backend needs at run time is checked in fastbp/core/_cpu.pyx.
BACKENDS = {
    "x86_64": {
        "avx512": [
            "-mavx512f",
            "-mavx512dq",
            "-mavx512bw",
            "-mavx512vl",
            "-mavx2",
            "-mfma",
            "-mprefer-vector-width=512",
        ],
        "avx2": ["-mavx2", "-mfma"],
        "generic": [],
    },
    "aarch64": {"neon": [], "generic": []},  # NEON is part of AArch64; generic is its fallback name everywhere
}
# The machine that is built for, which _PYTHON_HOST_PLATFORM names where it is another one
MACHINE = sysconfig.get_platform().rsplit("-", 1)[-1]
if MACHINE == "universal2":  # a Python for both kinds of Mac; the flags of one do not compile for the other
    MACHINE = os.environ.get("ARCHFLAGS", platform.machine()).split()[-1]
    os.environ |= {"ARCHFLAGS": f"-arch {MACHINE}", "_PYTHON_HOST_PLATFORM": f"macosx-11.0-{MACHINE}"}
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(MACHINE, MACHINE)

if sys.platform == "darwin":  # which saves these registers from their first use on: XGETBV cannot foretell it
    del BACKENDS["x86_64"]["avx512"]

# FASTBP_CHECKS=address or =bounds builds a core that stops where it leaves its memory or an array of known size,
# FASTBP_ONLY=avx2 that backend alone, FASTBP_OPENMP=0 one without OpenMP. Builds of different kinds do not mix in one
# folder: tests/sanitize.py makes them in a copy.
CHECKS = os.environ.get("FASTBP_CHECKS", "")
CHECKING = {
    "": [],
    "address": [
        "-O1",
        "-g1",  # lines in reports; more takes the compiler twice as long
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
    ],
    "bounds": ["-O1", "-fsanitize=bounds", "-fsanitize-undefined-trap-on-error"],
}
if CHECKS not in CHECKING:
    raise SystemExit(f"FASTBP_CHECKS: expected address, bounds or nothing, got {CHECKS!r}")

# One process, one OpenMP library: on macOS and Windows PyTorch and scikit-learn bring theirs, and one more may end the
# process (OMP Error #15). There the compiler is not asked for it, and the threads are those of fastbp/core/pool.h.
OPENMP = sys.platform not in ("darwin", "win32") and os.environ.get("FASTBP_OPENMP", "1") != "0"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKS == "bounds",
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": CHECKS == "bounds",
    "embedsignature": True,
    "freethreading_compatible": True,  # a model's lock is atomic, and all scratch memory belongs to a model or a caller
}

_translation = threading.Lock()  # Cython is not known to be safe in threads


class BuildExt(build_ext):
    """Finds out whether the compiler works, and whether it has OpenMP, before the first file is compiled."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.use_clang()
        if not self.compiles([]):
            raise SystemExit(
                "fastbp needs a C compiler to be built from source and found none that works. Install one (Debian or "
                "Ubuntu: apt install gcc python3-dev; Fedora: dnf install gcc python3-devel; macOS: xcode-select "
                "--install; Windows: the Build Tools for Visual Studio, and LLVM for clang-cl) or install a wheel "
                "instead: pip install --only-binary=:all: fastbp"
            )
        threads = self.flags_for_threads()
        for extension in self.extensions:
            if extension.name.endswith(("_cpu", "_lock")):
                continue
            extension.extra_compile_args += threads
            extension.extra_link_args += threads
        self.parallel = self.parallel or os.cpu_count()
        names = ", ".join(extension.name.rpartition(".")[2] for extension in self.extensions)
        print(f"fastbp: compiling {names}; this takes about a minute on two cores", flush=True)
        super().build_extensions()

    def build_extension(self, extension):
        """Translate to C, then compile: while one thread translates, the compiler works for another."""
        start = time.perf_counter()
        with _translation:
            translate(extension)
        super().build_extension(extension)
        print(f"fastbp: {extension.name} took {time.perf_counter() - start:.0f} s", flush=True)

    def use_clang(self):
        """In the place of Microsoft's compiler, which has neither vector types nor __atomic; flags bear a prefix."""
        if not self.compiler.initialized:
            self.compiler.initialize(self.plat_name)
        self.compiler.cc = "clang-cl"
        for extension in self.extensions:
            extension.extra_compile_args = [f"/clang:{flag}" for flag in extension.extra_compile_args]

    def flags_for_threads(self):
        """OpenMP where it is looked for and the compiler has it, else what the pool needs."""
        if OPENMP and self.compiles(["-fopenmp"]):
            return ["-fopenmp"]
        print("fastbp: built without OpenMP; the threads are a pool of its own")
        return [] if os.name == "nt" else ["-pthread"]

    def compiles(self, flags):
        """Whether a program that includes Python.h, and omp.h if OpenMP is asked for, compiles and links."""
        headers = ["Python.h", *(["omp.h"] if flags else [])]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.c"
            path.write_text("".join(f"#include <{h}>\n" for h in headers) + "int main(void) { return 0; }\n")
            try:
                objects = self.compiler.compile(
                    [str(path)], output_dir=folder, include_dirs=self.include_dirs, extra_postargs=flags
                )
                self.compiler.link_executable(objects, str(path.with_suffix("")), extra_postargs=flags)
            except (CompileError, LinkError, OSError):
                return False
        return True


def translate(extension):
    """Make C of the extension's Cython source, in a folder of its own: the module's name is written into the C file.

    Flags are kept out of Cython's sight: it remembers those of a source file and would give them to the next backend.
    """
    name = extension.name.rpartition(".")[2]
    plain = Extension(extension.name, extension.sources, depends=extension.depends)
    (made,) = cythonize([plain], build_dir=f"build/cython/{name}", compiler_directives=DIRECTIVES)
    extension.sources = made.sources


def extensions():
    """kernels.pyx under the name of each backend, then _cpu and _lock without any instruction-set flag."""
    included = [str(path) for path in sorted(Path("fastbp/core").rglob("*.[ph]*")) if path.suffix in (".pxi", ".h")]
    for backend, flags in BACKENDS.get(MACHINE, {"generic": []}).items():
        if os.environ.get("FASTBP_ONLY", backend) != backend:
            continue
        yield Extension(
            f"fastbp.core._{backend}",
            ["fastbp/core/kernels.pyx"],
            depends=included,
            include_dirs=["fastbp/core"],
            libraries=[] if os.name == "nt" else ["m"],
            extra_compile_args=[*COMMON, *flags, *CHECKING[CHECKS]],
            extra_link_args=list(CHECKING[CHECKS]),
        )
    for name in ("_cpu", "_lock"):
        yield Extension(
            f"fastbp.core.{name}",
            [f"fastbp/core/{name}.pyx"],
            extra_compile_args=[*COMMON, *CHECKING[CHECKS]],
            extra_link_args=list(CHECKING[CHECKS]),
        )


setup(ext_modules=list(extensions()), cmdclass={"build_ext": BuildExt})
