"""The source tree: which way imports run, what modules see of each other, the version, and the source distribution.

The only tests that need it; all others run where fastbp is installed, beside copies of README.md and pyproject.toml.
"""

import ast
import os
import re
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
CORE = SOURCE / "core"

# Every module may import those before it, and only those; what only checkers import counts as well.
FLOORS = [
    ["core.plan"],
    ["core.sparse"],
    [f"core.reference.{name}" for name in ("activations", "order", "products", "reductions", "updates")],
    ["core.reference.engine", "core.reference.layers.record", "core.reference.losses"],
    [
        f"core.reference.layers.{name}"
        for name in ("activation", "dense", "dropout", "embedding", "join", "normalization")
    ],
    ["core.reference.layers.sparse"],
    ["core.reference.layers"],
    ["core.reference.network"],
    ["core.reference"],
    ["core._cpu", "core._lock", "core.threads"],
    ["core"],
    ["data", "data.hints", "formats", "formats.writing", "plotting"],
    ["data.arrays"],
    ["data.sparse", "settings"],
    ["data.sampling", "formats.npz", "metrics", "parameters", "schedules"],
    ["layers.layer", "losses"],
    [f"layers.{name}" for name in ("activation", "composition", "dense", "dropout", "embedding", "normalization")],
    ["layers.tree"],
    ["layers"],
    ["lowering.slots", "lowering.tensors"],
    ["lowering.gradients"],
    ["lowering"],
    ["model"],
    ["divergence", "summary"],
    ["optim"],
    ["profiling"],
    ["training.history", "training.inputs"],
    ["training.callbacks", "training.trainer"],
    ["training.run_state"],
    ["training.sequential"],
    ["training"],
    ["sklearn.objective", "sklearn.network"],
    ["sklearn.task"],
    ["sklearn.lbfgs", "sklearn.stochastic"],
    ["sklearn.estimator"],
    ["sklearn.classifier", "sklearn.regressor"],
    ["checks", "ops", "datasets", "benchmark", "training.checkpoint", "formats.onnx", "formats.safetensors"],
    ["callbacks", "onnx", "safetensors", "sklearn", "tensorboard"],
    [""],
    ["__main__"],
]


def imports_of(path):
    """The fastbp modules that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
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


def members_defined_in(tree):
    """The names of what the classes of a module have: methods, class variables, and attributes that they set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for member in ast.walk(node):
                if isinstance(member, ast.FunctionDef):
                    yield member.name
                elif isinstance(member, ast.Name) and isinstance(member.ctx, ast.Store):
                    yield member.id
                elif isinstance(member, ast.Attribute) and isinstance(member.ctx, ast.Store) and is_own(member.value):
                    yield member.attr


def is_own(node):
    """Whether this is self, cls or super()."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_no_private_attribute_of_another_module():
    found = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        own = set(members_defined_in(tree))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or is_own(node.value):
                continue
            if not node.attr.startswith("__") and node.attr not in own:
                found.append(f"{path.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def included_lines():
    """The lines of all .pxi files in the order of inclusion: file, number, and code without comments and strings."""
    for name in re.findall(r'^include "(.*)"$', (CORE / "kernels.pyx").read_text(), re.M):
        text = re.sub(r'"""(.|\n)*?"""', lambda found: "\n" * found[0].count("\n"), (CORE / name).read_text())
        for number, line in enumerate(text.splitlines(), 1):
            yield name, number, re.sub(r"#.*|\"[^\"]*\"|'[^']*'", "", line)


DEFINITIONS = [
    re.compile(r"^cdef\b[^(=]*?(\w+)\("),  # functions
    re.compile(r"^(?:cdef|ctypedef|cpdef) (?:struct|enum|class) (\w+):?\s*$"),  # or their declaration
    re.compile(r"^cdef (?!inline|extern|enum|struct|class)\w[\w ]*? (\w+)(?: =|\[)"),  # variables
]
MEMBER = re.compile(r"\b[A-Z][A-Z_]+\b")  # of an enum
EXTERN = re.compile(r"^    (?:(?!ctypedef)[\w *]+?(\w+)\(|const \w+ \**(\w+)$|ctypedef struct (\w+):)")


def definitions(lines):
    """The names that the .pxi files define, with the number of the line in all of them."""
    block = ""
    for number, (_, _, code) in enumerate(lines):
        block = code if code and not code.startswith(" ") else block
        for pattern in DEFINITIONS:
            yield from ((name, number) for name in pattern.findall(code))
        if " enum" in block and code.startswith("    "):
            yield from ((name, number) for name in MEMBER.findall(code.split("=")[0]))
        if block.startswith("cdef extern") and (found := EXTERN.match(code)):
            yield from ((name, number) for name in found.groups() if name)


def test_a_pxi_uses_only_names_from_above():
    """A reader goes from top to bottom; what he meets was said before."""
    lines = list(included_lines())
    first: dict[str, int] = {}
    for name, number in definitions(lines):
        first.setdefault(name, number)
    assert len(first) > 250
    assert {"Matrix", "RELU", "multiply_rows", "tile_float", "MAX_STATE", "Network", "FLOAT_KINDS"} <= first.keys()
    for number, (file, line, code) in enumerate(lines):
        for name in re.findall(r"(?<![.\w])[A-Za-z_]\w*", code):
            assert first.get(name, 0) <= number, f"{file}:{line} uses {name}, which is defined further down"


def test_every_pxi_is_included_once():
    included = re.findall(r'^include "(.*)"$', (CORE / "kernels.pyx").read_text(), re.M)
    assert sorted(included) == sorted(str(path.relative_to(CORE)) for path in CORE.rglob("*.pxi"))


def test_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert f"version: {fb.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert newest == "## [Unreleased]" or newest.startswith(f"## [{fb.__version__}] - 20")


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
    modules = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py")]
    assert [path for path in modules if not (target / "fastbp" / path).exists()] == []
    code = """if True:
        import fastbp as fb
        print(fb.__file__)
        fb.show_config()
        with fb.use_backend("numpy"):
            print(fb.datasets.load_digits()[0].shape)
    """
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert str(target) in result.stdout
    assert f"backend  {COMPILED[0]}" in result.stdout
    assert "(1797, 64)" in result.stdout
