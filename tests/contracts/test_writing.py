"""Writers of one path: threads, processes, leftovers of killed ones; permissions and symbolic links."""

import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastbp as fb
from fastbp.formats import writing

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and symbolic links as POSIX has them")


def model(number):
    made = fb.Sequential([fb.Dense(30, 40), fb.Dense(40, 2)], seed=0)
    made.parameters().values = np.full(made.parameters().values.size, number)
    return made


def number_of(loaded):
    """The number that all weights have: a file that is made of two has two."""
    (number,) = {value for tensor in loaded.parameters() for value in np.unique(tensor)}
    return number


def leftovers(folder):
    return [name for name in os.listdir(folder) if ".tmp" in name]


def test_threads_write_one_path(tmp_path):
    """No save fails, no reader ever finds half of a file, and nothing is left."""
    path, errors, done = tmp_path / "net.npz", [], threading.Event()
    model(0).save(path)

    def write(number):
        mine = model(number)
        try:
            for _ in range(30):
                mine.save(path)
        except BaseException as error:
            errors.append(error)

    def read():
        try:
            while not done.is_set():
                assert number_of(fb.load(path)) in range(9)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(i,)) for i in range(1, 9)]
    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert errors == []
    assert number_of(fb.load(path)) in range(1, 9)
    assert leftovers(tmp_path) == []


WRITES = """
import sys
import numpy as np
import fastbp as fb

model = fb.Sequential([fb.Dense(30, 40), fb.Dense(40, 2)], seed=0)
model.parameters().values = np.full(model.parameters().values.size, float(sys.argv[2]))
for _ in range(40):
    model.save(sys.argv[1])
"""


def test_processes_write_one_path(tmp_path):
    path = tmp_path / "net.npz"
    command = [sys.executable, "-c", WRITES, path]
    processes = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE) for i in (1, 2, 3)]
    while any(process.poll() is None for process in processes):
        if path.exists():
            assert number_of(fb.load(path)) in (1, 2, 3)
    assert [process.communicate()[1] for process in processes] == [b"", b"", b""]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert leftovers(tmp_path) == []


HOLDS = """
import os, sys
os.fsync = lambda _: (print("held", flush=True), sys.stdin.read())
import fastbp as fb
fb.Sequential([fb.Dense(2, 2)]).save(sys.argv[1])
"""


@posix
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "net.npz"
    living, dead = (
        subprocess.Popen([sys.executable, "-c", HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    )
    assert living.stdout.readline() == dead.stdout.readline() == b"held\n"
    assert len(leftovers(tmp_path)) == 2
    dead.kill()
    dead.communicate()
    model(1).save(path)
    assert len(leftovers(tmp_path)) == 1
    other = tmp_path / "net.npz.tmpnot-ours"
    other.write_bytes(b"the user's")
    writing.remove_leftovers(path)
    assert len(leftovers(tmp_path)) == 2
    living.communicate(b"", timeout=60)  # it goes on, and its file takes the place
    assert living.returncode == 0
    assert fb.load(path).outputs == 2
    assert leftovers(tmp_path) == [other.name]


@posix
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o444, 0o664])
def test_a_file_keeps_its_mode(tmp_path, mode):
    path = tmp_path / "net.npz"
    model(1).save(path)
    before = os.umask(0o022)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~before
    path.chmod(mode)
    model(2).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert number_of(fb.load(path)) == 2


@posix
@pytest.mark.parametrize("dangling", [False, True])
def test_a_symbolic_link_keeps_its_target(tmp_path, dangling):
    (tmp_path / "runs").mkdir()
    target, link = tmp_path / "runs" / "17.npz", tmp_path / "latest.npz"
    link.symlink_to(os.path.join("runs", "17.npz"))
    if not dangling:
        model(1).save(target)
    model(2).save(link)
    assert link.is_symlink()
    assert not target.is_symlink()
    assert number_of(fb.load(target)) == number_of(fb.load(link)) == 2
    assert leftovers(tmp_path) + leftovers(tmp_path / "runs") == []


@posix
def test_links_that_lead_in_a_circle_are_an_error(tmp_path):
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises(OSError, match="symbolic links"):
        model(1).save(one)


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "net.npz"
    model(1).save(path)
    for error in (KeyboardInterrupt, OSError(28, "No space left on device")):

        def fails(_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises((KeyboardInterrupt, OSError)):
                model(2).save(path)
        assert number_of(fb.load(path)) == 1
        assert leftovers(tmp_path) == []
