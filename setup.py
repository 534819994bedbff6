"""The compiled core: one Cython source, built once per instruction set. Metadata is in pyproject.toml."""

import os
import platform
import sysconfig
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# Contraction is off and fused multiply-add explicit, so that an element has the same bits wherever it is computed.
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
    MACHINE = platform.machine()
    os.environ.setdefault("ARCHFLAGS", f"-arch {MACHINE}")
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(MACHINE, MACHINE)

# FASTBP_CHECKS=address or =bounds builds a core that stops where it leaves its memory, FASTBP_ONLY=avx2 that backend
# alone. Builds of different kinds do not mix in one folder: tests/sanitize.py makes them in a copy.
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
    "bounds": ["-O1"],
}
if CHECKS not in CHECKING:
    raise SystemExit(f"FASTBP_CHECKS: expected address, bounds or nothing, got {CHECKS!r}")

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": CHECKS == "bounds",
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": CHECKS == "bounds",
    "embedsignature": True,
    "freethreading_compatible": True,  # a model's gate is atomic, and there is no scratch but in models and callers
}


class BuildExt(build_ext):
    """Finds out whether the compiler works, and whether it has OpenMP, before the first file is compiled."""

    def build_extensions(self):
        if not self.compiles([]):
            raise SystemExit(
                "fastbp needs a C compiler to be built from source and found none that works. Install one (Debian or "
                "Ubuntu: apt install gcc python3-dev; Fedora: dnf install gcc python3-devel; macOS: xcode-select "
                "--install) or install a wheel instead: pip install --only-binary=:all: fastbp"
            )
        openmp = ["-fopenmp"] if self.compiles(["-fopenmp"]) else []
        if not openmp:
            print("fastbp: this compiler has no OpenMP; the kernels will be serial")
        for extension in self.extensions:
            if extension.name.endswith(("_cpu", "_gate")):
                continue
            extension.extra_compile_args += openmp
            extension.extra_link_args += openmp
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

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


def cythonized(name, source, folder, flags=(), **options):
    """One extension; its generated C goes into a folder of its own, because the module's name is written into it.

    The flags are set afterwards: cythonize remembers those of a source file and would give them to the next backend.
    """
    extension = Extension(f"fastbp.core.{name}", [f"fastbp/core/{source}"], **options)
    (extension,) = cythonize([extension], build_dir=f"build/cython/{folder}", compiler_directives=DIRECTIVES)
    extension.extra_compile_args, extension.extra_link_args = [*flags, *CHECKING[CHECKS]], list(CHECKING[CHECKS])
    return extension


def extensions():
    """_cpu and _gate without any instruction-set flag, then kernels.pyx under the name of each backend."""
    parts = [str(path) for path in sorted(Path("fastbp/core").glob("*.[ph]*")) if path.suffix in (".pxi", ".h")]
    yield cythonized("_cpu", "_cpu.pyx", "cpu")
    yield cythonized("_gate", "_gate.pyx", "gate")
    for backend, flags in BACKENDS.get(MACHINE, {"generic": []}).items():
        if os.environ.get("FASTBP_ONLY", backend) != backend:
            continue
        yield cythonized(
            f"_{backend}",
            "kernels.pyx",
            backend,
            COMMON + flags,
            depends=parts,
            include_dirs=["fastbp/core"],
        )


setup(ext_modules=list(extensions()), cmdclass={"build_ext": BuildExt})
