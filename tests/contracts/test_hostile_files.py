"""Hostile files: whatever a file holds, it is refused, or gives the model that was saved.

Every bit and length, not some of them: ``FASTBP_EXAMPLES=1 pytest tests/contracts/test_hostile_files.py``; more files:
``tests/fuzz.py``.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

import fastbp as fb

LONG = os.environ.get("FASTBP_EXAMPLES")
X = np.random.default_rng(0).standard_normal((6, 3)).astype("f4")


def saved(kind, path):
    """The bytes of a small file, and a function that gives all that can be read from it."""
    model = fb.Sequential([fb.Dense(2, 1), fb.BatchNorm(1)], seed=0)
    optimizer = fb.SGD(model.parameters(), fb.schedules.Cosine(0.1, 9), momentum=0.9)
    model.fit(X[:, :2], X[:, 2], "mse", optimizer, verbose=0, callbacks=[fb.Checkpoint(path)])

    def of_model(model):
        return repr(model.model.config()), [array.tobytes() for array in model.model.tensors().values()]

    def of_checkpoint():
        model, optimizer, epochs = fb.Checkpoint.load(path)
        settings_ = {name: value for name, value in vars(optimizer).items() if name not in ("params", "schedule")}
        rest = (
            model.model.program["key"],
            model.model.training_step,
            model.model.generator.bit_generator.state,
            optimizer.schedule,
            epochs,
        )
        return of_model(model), repr((settings_, type(optimizer), *rest[:-2], vars(rest[-2]), epochs))

    def of_safetensors():
        before = of_model(model)
        try:
            files.load(model, path)
        except fb.FileFormatError:
            assert of_model(model) == before
            raise
        assert np.isfinite(model.parameters().values).all()
        return of_model(model)

    if kind == "model":
        model.save(path)
    elif kind == "safetensors":
        pytest.importorskip("safetensors")
        import fastbp.safetensors as files

        files.save(model, path)
    read = {"model": lambda: of_model(fb.load(path)), "checkpoint": of_checkpoint, "safetensors": of_safetensors}[kind]
    return path.read_bytes(), read


def structure(data):
    """Which bytes of an ``.npz`` file do not lie in an array, nor in the text of the header."""
    inside = np.zeros(len(data), bool)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            begin = data.index(b"\x93NUMPY", member.header_offset)
            inside[begin + 128 : begin + member.file_size] = True
    return ~inside


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_every_bit_of_a_file_is_checked(kind, tmp_path):
    """A file with another bit is refused, or reads as it was: zip has bytes that say nothing."""
    path = tmp_path / "file"
    whole, read = saved(kind, path)
    expected, important, stride = read(), structure(whole), 1 if LONG else 29
    refused = 0
    for bit in range(8 * len(whole)):
        if bit % stride and not (important[bit // 8] and bit % 5 == 0):
            continue
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert read() == expected, bit
        except fb.FileFormatError:
            refused += 1
    assert refused > 500


def test_every_bit_of_a_safetensors_file(tmp_path):
    """There is no checksum: other finite numbers are read as such, all else is refused and the model as it was."""
    path = tmp_path / "file"
    whole, read = saved("safetensors", path)
    expected, header = read(), 8 + int.from_bytes(whole[:8], "little")
    for bit in range(8 * len(whole)):
        if bit // 8 >= header and bit % 7 and not LONG:
            continue
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with contextlib.suppress(fb.FileFormatError):
            assert read() == expected or bit // 8 >= header, bit
        path.write_bytes(whole)
        assert read() == expected


@pytest.mark.parametrize("kind", ["model", "checkpoint", "safetensors"])
def test_no_file_can_be_cut_short(kind, tmp_path):
    path = tmp_path / "file"
    whole, read = saved(kind, path)
    for length in range(0, len(whole), 1 if LONG else 7):
        path.write_bytes(whole[:length])
        with pytest.raises(fb.FileFormatError):
            read()


def packed(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unpacked(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_a_small_file_takes_little_memory(tmp_path):
    """Neither a member that is compressed, nor one that claims to be large, nor one that is read a thousand times."""
    path = tmp_path / "file"
    members = unpacked(saved("model", path)[0])
    claim = npy(np.zeros(9, "f4")).replace(b"(9,), }        ", b"(900000000,), }")
    header = members["header.npy"]
    directory = packed({"header.npy": header, "wide.npy": npy(np.zeros(10**5))})
    overlapping = directory[: directory.index(b"PK\x01\x02")] + b"".join(
        directory[directory.index(b"PK\x01\x02") : directory.index(b"PK\x05\x06")] for _ in range(500)
    )
    end = bytearray(directory[directory.index(b"PK\x05\x06") :])
    end[8:10] = end[10:12] = (1000).to_bytes(2, "little")
    end[12:16] = (len(overlapping) - directory.index(b"PK\x01\x02")).to_bytes(4, "little")
    bombs = [
        packed(members | {"0.weight.npy": npy(np.zeros(10**8, "i1"))}, zipfile.ZIP_DEFLATED),
        packed(members | {"0.weight.npy": claim}),
        overlapping + bytes(end),
    ]
    for bomb in bombs:
        path.write_bytes(bomb)
        del bomb
        tracemalloc.start()
        try:
            with pytest.raises(fb.FileFormatError):
                fb.load(path)
            assert tracemalloc.get_traced_memory()[1] < 5e6
        finally:
            tracemalloc.stop()


def changed(header, at, value):
    *path, last = at
    for key in path:
        header = header[key]
    header[last] = value


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (["format"], float("inf")),
        (["layers", 0, "in_features"], 2**64),
        (["layers"], [{"type": "TabularInput", "n_numeric": 2**62, "cardinalities": [2]}]),
        (["checkpoint", "step"], -1),
        (["checkpoint", "step"], 2**64),
        (["checkpoint", "epoch"], -1),
        (["checkpoint", "epoch"], 0.5),
        (["checkpoint", "steps"], 2**64),
        (["checkpoint", "orders", "state", "inc"], 2**128),
        (["checkpoint", "optimizer"], ["Optimizer", {}]),
        (["checkpoint", "optimizer", 1, "clip_norm"], 10**400),
        (["checkpoint", "schedule"], ["Schedule", {}]),
        (["checkpoint", "schedule", 1, "steps"], 2**70),
    ],
)
def test_headers_that_fuzzing_has_found(at, value, tmp_path):
    path = tmp_path / "file"
    members = unpacked(saved("checkpoint", path)[0])
    header = json.loads(str(np.load(io.BytesIO(members["header.npy"]))))
    changed(header, at, value)
    path.write_bytes(packed(members | {"header.npy": npy(np.array(json.dumps(header)))}))
    with pytest.raises(fb.FileFormatError):
        fb.Checkpoint.load(path)


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("checkpoint.keys", npy(np.zeros(1, "u8"))),  # which would be spread over both layers
        ("checkpoint.keys", npy(np.full(2, np.nan))),
        ("checkpoint.keys", npy(np.zeros(2, "u8"))[:-1]),
        ("checkpoint.keys", npy(np.zeros(2, "u8")) + b"."),
        ("0.weight", npy(np.zeros((2, 1), "c8"))),
        ("0.weight", b""),
        ("0.weight", npy(np.zeros((2, 1), "f4")).replace(b"(2, 1), }", b"(2, 1), 'descr': '<f4'}")),
        ("0.weight", npy(np.zeros((2, 1), "f4")).replace(b"(2, 1), }" + b" " * 30, b"(2" + b"0" * 30 + b", 1), }")),
        ("0.weight", npy(np.zeros((2, 1), "f4")).replace(b"'<f4'", b"print")),
    ],
)
def test_members_that_are_no_such_array(name, member, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(packed(unpacked(saved("checkpoint", path)[0]) | {f"{name}.npy": member}))
    with pytest.raises(fb.FileFormatError):
        fb.Checkpoint.load(path)


def test_a_negative_variance_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    import fastbp.safetensors as files

    model = fb.Sequential([fb.Dense(2, 1), fb.BatchNorm(1)], seed=0)
    model.layers[1].running_var[:] = -1
    files.save(model, tmp_path / "file")
    with pytest.raises(fb.FileFormatError, match=r"1.running_var: expected no negative variance, got -1"):
        files.load(model, tmp_path / "file")


def test_a_path_is_no_open_file():
    with pytest.raises(TypeError):
        fb.load(0)


@pytest.mark.parametrize("kind", ["load", "checkpoint", "safetensors"])
def test_fuzzing_for_a_while_finds_nothing(kind, tmp_path):
    pytest.importorskip("atheris")
    pytest.importorskip("safetensors")
    script = os.path.join(os.path.dirname(__file__), "..", "fuzz.py")
    run = subprocess.run([sys.executable, script, kind, "15"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Done" in run.stderr
