"""Memory safety: the tests on a build that checks itself, and a training under valgrind.

    python tests/sanitize.py address [pytest's arguments]    gcc's AddressSanitizer and UBSan
    python tests/sanitize.py bounds [pytest's arguments]     checks of every index into an array of known size
    python tests/sanitize.py valgrind [backend]              memcheck, on the fastbp that is installed: no build

The first two build in a copy of the source and run the tests there, with the packages of this Python.
FASTBP_ONLY=avx2 in the environment leaves the other backends out of the build.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Tests that a build of this kind cannot pass, because the sanitizer has memory of its own: it remembers what was freed,
# and ends the process where none can be had; atheris brings a sanitizer itself.
APART = {
    "address": [
        "tests/data/test_sampling.py::test_a_file_five_times_the_memory",
        "tests/contracts/test_memory.py::test_a_limited_address_space",
        "tests/contracts/test_memory.py::test_ten_thousand_fits",
        "tests/contracts/test_hostile_files.py::test_fuzzing_for_a_while_finds_nothing",
    ],
    "bounds": [],
}


def copy_source(tree):
    """What git knows or would add, as it is now."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def library(name):
    return subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip()


def environment_of(kind, tree):
    """The copy comes before the installed package, for the tests' own processes too."""
    environment = {"PYTHONPATH": str(tree)}
    if kind == "address":
        environment |= {
            # the sanitizer has to be there first, and C++, whose exceptions it intercepts
            "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so.6')}",
            "PYTHONMALLOC": "malloc",  # it watches malloc, not Python's arenas
            "ASAN_OPTIONS": "detect_leaks=0",  # CPython does not free everything at its end: valgrind looks for ours
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
    return os.environ | environment


def run_tests(kind, arguments):
    """Pytest leaves the sanitizers' standard error alone: a report ends the process, and with it what pytest holds."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_source(tree)
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        with open(tree / "build.log", "w+") as log:
            if subprocess.call(build, cwd=tree, env=os.environ | {"FASTBP_CHECKS": kind}, stdout=log, stderr=log):
                log.seek(0)
                return log.read()
        apart = [f"--deselect={test}" for test in APART[kind]]
        command = [sys.executable, "-m", "pytest", "--capture=sys", *apart, *arguments]
        return subprocess.call(command, cwd=tree, env=environment_of(kind, tree))


# Every kind of layer, both dtypes, two threads, and a second batch size; the last part of an epoch is a short batch.
TRAINING = """
import numpy as np
import fastbp as fb

fb.set_num_threads(2)
rng = np.random.default_rng(0)
X, y = np.column_stack([rng.standard_normal((70, 5)), rng.integers(0, 9, 70)]), rng.integers(0, 3, 70)
for dtype in ("float32", "float64"):
    layers = [fb.TabularInput(5, [9], 3), fb.Dense(8, 67, activation="relu"), fb.BatchNorm(67), fb.Dropout(0.2),
              fb.Dense(67, 65), fb.LayerNorm(65), fb.Activation("gelu"), fb.Dense(65, 3)]
    model = fb.Sequential(layers, dtype=dtype, seed=0)
    for make in (fb.Adam, fb.SGD):
        optimizer = make(model.parameters(), lr=0.01, clip_norm=1.0)
        model.fit(X, y, "cross_entropy", optimizer, epochs=2, batch_size=32, verbose=0, sample_weight=np.ones(70))
    assert np.isfinite(model.predict(np.tile(X, (20, 1)))).all()
"""


def run_valgrind(backend="avx2"):
    """Errors whose stack is in the core, and memory lost that it took; valgrind knows no AVX-512."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        command = ["valgrind", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40",
                   "--read-var-info=no", f"--log-file={report}", sys.executable, "-c", TRAINING]  # fmt: skip
        environment = os.environ | {"FASTBP_BACKEND": backend, "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1"}
        status = subprocess.call(command, env=environment)
        blocks = re.split(r"\n==\d+== \n", report.read_text())
    ours = [block for block in blocks if re.search(rf"(at|by) 0x.*fastbp/core/_{backend}", block)]
    print(f"valgrind: {len(ours)} errors in fastbp, {len(blocks)} blocks in the report, {backend}")
    print(*ours, sep="\n\n")
    return status or bool(ours)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:] or [""]
    if kind not in (*APART, "valgrind"):
        sys.exit(__doc__)
    sys.exit(run_valgrind(*arguments) if kind == "valgrind" else run_tests(kind, arguments))
