"""The package as a whole: which way imports run, how a backend is forced, the main job, and the source distribution."""

import ast
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from conftest import COMPILED

import fastbp as fb

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "fastbp"

# Every module may import those before it, and only those.
FLOORS = [
    ["core.plan"],
    ["core.reference"],
    ["core._cpu", "core._gate", "core.threads"],
    ["core"],
    ["data", "history"],
    ["profiling"],
    ["files", "metrics", "parameters", "sampling", "schedules"],
    ["divergence"],
    ["layers", "losses", "optim"],
    ["model", "callbacks"],
    ["state"],
    ["training"],
    ["checkpoint", "checks", "ops", "datasets", "benchmark", "onnx", "safetensors", "sklearn", "tensorboard"],
    [""],
    ["__main__"],
]


def imports_of(path):
    """The fastbp modules that a file imports when it is imported; what stands under TYPE_CHECKING does not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "fastbp")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastbp":
            for alias in node.names:
                below = SOURCE.joinpath(*node.module.split(".")[1:], alias.name)
                is_module = any(below.with_suffix(s).exists() for s in (".py", ".pyx")) or below.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def test_imports_run_downward():
    floor_of = {name: i for i, names in enumerate(FLOORS) for name in names}
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for imported in imports_of(path):
            other = imported.removeprefix("fastbp").removeprefix(".")
            if name == "core" and other == "":
                continue  # show_config asks for the version when it is called
            assert floor_of[other] < floor_of[name], f"{name or 'fastbp'} imports {imported}"


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


@pytest.mark.parametrize("name", [*COMPILED, "numpy"])
def test_a_backend_can_be_forced(name):
    result = run("import fastbp as fb; fb.show_config()", FASTBP_BACKEND=name)
    assert f"backend  {name}" in result.stdout, result.stderr


def test_every_backend_is_compiled_for_its_instruction_set(any_backend):
    """A backend under another one's flags would crash on the CPUs that it is there for."""
    from fastbp.core import backend

    on_arm = platform.machine() in ("aarch64", "arm64") and any_backend != "numpy"
    assert backend().target() == ("neon" if on_arm else any_backend)


def test_a_backend_that_cannot_run_says_why():
    cannot = next(name for name in ("neon", "avx512", "avx2") if name not in COMPILED)
    result = run("import fastbp", FASTBP_BACKEND=cannot)
    assert f"FASTBP_BACKEND: backend '{cannot}' cannot run here: this CPU or operating system does not" in result.stderr
    result = run("import fastbp", FASTBP_BACKEND="avx1024")
    assert "FASTBP_BACKEND: expected one of avx512, avx2, neon, generic, numpy, got 'avx1024'" in result.stderr
    with pytest.raises(RuntimeError, match="cannot run here"), fb.use_backend(cannot):
        pass


def test_use_backend_ends_with_its_block():
    from fastbp.core import backend_name

    before = backend_name()
    with fb.use_backend("numpy"), pytest.raises(ZeroDivisionError), fb.use_backend("generic"):
        raise ZeroDivisionError
    assert backend_name() == before


def test_show_config(capsys):
    from fastbp.core import backend

    fb.show_config()
    text = capsys.readouterr().out
    assert f"fastbp {fb.__version__}" in text
    assert f"threads  {fb.get_num_threads()} ({'OpenMP' if backend().openmp() else 'a pool of its own'})" in text


def test_omp_num_threads_is_respected():
    assert run("import fastbp as fb; print(fb.get_num_threads())", OMP_NUM_THREADS="1").stdout == "1\n"


def test_importing_needs_numpy_alone():
    code = "import sys, fastbp; print(*{'torch', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules))"
    result = run(code)
    assert (result.returncode, result.stdout.strip()) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes():
    """The parent has an OpenMP team by then, the child has not: it must not wait for one."""
    code = """if True:
        import os, signal, numpy as np, fastbp as fb
        fb.set_num_threads(2)
        X = np.ones((1000, 300), "f4")
        model = fb.Sequential([fb.Dense(300, 300), fb.Dense(300, 200)], seed=0)
        expected = model.predict(X)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(0 if fb.get_num_threads() == 1 and model.predict(X).tobytes() == expected.tobytes() else 1)
        assert os.waitpid(pid, 0)[1] == 0
    """
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_digits():
    X, y = fb.datasets.load_digits()
    assert X.shape == (1797, 64)
    assert X.min() == 0
    assert X.max() == 16
    assert sorted(set(y)) == list(range(10))
    assert (SOURCE / "datasets" / "digits.npz").stat().st_size < 64 * 1024


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = fb.datasets.load_digits()
    expected = datasets.load_digits()
    assert (expected.data == X).all()
    assert (expected.target == y).all()


def test_the_main_job(capsys):
    from fastbp.__main__ import EPOCHS, main

    main([])
    *_, held_out, comparison = lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch") for line in lines) == EPOCHS
    assert float(held_out.split()[2]) >= 0.97
    assert "numpy" in comparison


def test_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert f"## [{fb.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sdist_builds_from_itself(tmp_path):
    """Everything that a build needs is in it: it is unpacked, built and run with the source tree out of reach."""
    tree = tmp_path / "tree"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("not in a git checkout")
    for name in filter(lambda n: (ROOT / n).exists(), files.stdout.splitlines()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    build = [sys.executable, "-m", "build", "--no-isolation"]
    subprocess.run([*build, "--sdist", "--outdir", tmp_path, tree], check=True, capture_output=True)
    shutil.rmtree(tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert not [n for n in tar.getnames() if n.endswith((".c", ".so"))]
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--target", target, archive]
    subprocess.run(pip, check=True, capture_output=True)
    types = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.suffix in (".pyi", ".typed")]
    assert [path for path in types if not (target / "fastbp" / path).exists()] == []
    code = "import fastbp as fb; print(fb.__file__); fb.show_config(); print(fb.datasets.load_digits()[0].shape)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert str(target) in result.stdout
    assert f"backend  {COMPILED[0]}" in result.stdout
    assert "(1797, 64)" in result.stdout


def test_bench_prints_a_row_for_every_network(capsys):
    from fastbp import benchmark
    from fastbp.__main__ import main

    main(["bench", "--seconds", "0"])
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert "numpy us" in head
    assert [row.split()[:3:2] for row in rows] == [
        ["-".join(map(str, widths)), optimizer]
        for widths, _, _ in benchmark.NETS.values()
        for optimizer in ("SGD", "Adam")
    ]


def test_operations_of_a_step():
    from fastbp import benchmark

    assert benchmark.operations((3, 5, 2), 7) == 2 * 7 * (3 * 5 * 2 + 5 * 2 * 3)  # no dx for the first layer
