"""The package as a whole, wherever it is installed: how a backend is forced, what an import costs."""

import os
import platform
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from conftest import COMPILED

import fastbp as fb


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


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="the oracle is Linux's list of a CPU's features")
def test_features_are_the_operating_systems():
    from fastbp.core import _cpu

    flags = re.findall(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)[0].split()
    names = {"neon": "asimd"}
    assert _cpu.features() == {name: names.get(name, name) in flags for name in _cpu.features()}


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
    others = {"torch", "scipy", "sklearn", "matplotlib", "onnx", "safetensors", "tensorboard", "tqdm", "difflib"}
    code = f"import sys, fastbp; print(*{others} & set(sys.modules))"
    result = run(code)
    assert (result.returncode, result.stdout.strip()) == (0, "")


def test_dir_has_what_is_public():
    """No module of fastbp's own, and nothing that is imported for it."""
    modules = {"callbacks", "datasets", "metrics", "ops", "schedules", "onnx", "safetensors", "sklearn"}
    assert {name for name in dir(fb) if isinstance(getattr(fb, name), types.ModuleType)} <= modules
    assert {*fb.__all__, "__version__"} <= set(dir(fb)) <= {*fb.__all__, "__version__", *modules}
    assert not any(name.startswith("_") for name in dir(fb) if name != "__version__")


@pytest.mark.parametrize(
    ("name", "member"), [("sklearn", "MLPClassifier"), ("onnx", "export"), ("safetensors", "load")]
)
def test_modules_that_need_another_package_are_imported_on_first_use(name, member):
    pytest.importorskip(name)
    code = f"""if True:
        import sys, fastbp as fb
        print({name!r} in dir(fb), "fastbp.{name}" in sys.modules, {name!r} in sys.modules)
        print(fb.{name}.{member}.__name__, fb.{name} is sys.modules["fastbp.{name}"])
    """
    result = run(code)
    assert (result.returncode, result.stdout) == (0, f"True False False\n{member} True\n"), result.stderr


@pytest.mark.parametrize("name", ["sklearn", "onnx", "safetensors"])
def test_modules_that_lack_their_package_are_not_in_dir_and_say_so(name):
    """What goes through all members, as inspect and help do, meets no error."""
    code = f"""if True:
        import inspect, sys
        sys.modules[{name!r}] = None
        import fastbp as fb
        print({name!r} in dir(fb), len(inspect.getmembers(fb)) == len(dir(fb)))
        fb.{name}
    """
    result = run(code)
    assert result.stdout == "False True\n", result.stderr
    assert f"ImportError: fastbp.{name} needs" in result.stderr
    assert f"pip install fastbp[{name}]" in result.stderr


def test_a_misspelt_name_is_an_attribute_error_with_near_names():
    for name, message in (("Dens", "did you mean 'Dense'"), ("skelarn", "did you mean 'sklearn'"), ("qqq", "expected")):
        if name == "skelarn":
            pytest.importorskip("sklearn")
        with pytest.raises(AttributeError, match=f"^module 'fastbp' has no attribute '{name}'; {message}"):
            getattr(fb, name)
    assert not hasattr(fb, "Dens")
    with pytest.raises(ImportError, match="cannot import name 'Dens' from 'fastbp'"):
        from fastbp import Dens  # noqa: F401


def test_importing_writes_nothing_and_starts_no_thread():
    code = """if True:
        import os, sys, threading
        import numpy

        def threads():
            return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()

        def watch(event, args):
            writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
            if event == "open" and (set(args[1] or "") & set("wax+") or args[2] & writing):
                print("opened to write:", *args)
            elif event.startswith(("os.", "socket.", "subprocess.")) and event not in ("os.listdir", "os.scandir"):
                print(event, *args)

        before = threads()
        sys.addaudithook(watch)
        import fastbp
        print(threads() - before)
    """
    result = run(code, PYTHONDONTWRITEBYTECODE="1")  # the bytecode is Python's
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stdout + result.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no peak of a process's memory on this system")
def test_importing_takes_less_than_ten_megabytes():
    code = """if True:
        import {}
        with open("/proc/self/status") as status:
            print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
    """
    numpy, fastbp = (int(run(code.format(modules)).stdout) for modules in ("numpy", "numpy, fastbp"))
    assert fastbp - numpy < 10 * 1024  # KiB
