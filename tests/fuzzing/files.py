"""Hostile files, made by atheris.

Of whatever bytes a file holds, reading it gives ``FileFormatError`` or a model that works. The first files are real
ones of every layer and optimizer; half of the mutations are of bytes, the others of what the bytes say (a number in the
header, the shape, dtype or name of an array) in a file whose checksums are right.
"""

import contextlib
import io
import json
import os
import random
import struct
import sys
import tempfile
import zipfile

import atheris
import numpy as np

with atheris.instrument_imports(include=["fastbp", "zipfile", "json.decoder"]):
    import fastbp as fb
    import fastbp.safetensors

FOLDER = tempfile.TemporaryDirectory()
PATH = os.path.join(FOLDER.name, "file")
HOSTILE = [
    *(0, -1, 1, 2, 3, 255, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 1.0, 1e-320),
    *(1e308, float("nan"), float("inf"), -float("inf"), True, None, "", "relu", "x", "float64", "Adam", "params", "lr"),
    *([], {}, [[]], [0], [1, 2], {"type": "Dropout"}, "Optimizer", "Schedule", "__class__", "9" * 5000, [1] * 300),
]  # fmt: skip


def architectures():
    """Models with every layer and every option that changes what is in a file."""
    for dtype in ("float32", "float64"):
        yield fb.Sequential([fb.Dense(3, 2)], dtype=dtype, seed=0)
        yield fb.Sequential(
            [fb.Dense(3, 4, activation="gelu"), fb.BatchNorm(4), fb.Activation("relu"), fb.Dropout(0.3),
             fb.LayerNorm(4), fb.Dense(4, 2, bias=False)], dtype=dtype, seed=0,
        )  # fmt: skip
        yield fb.Sequential(
            [fb.TabularInput(1, [2, 2], [1, 2], unknown="reserve"), fb.Dense(4, 2)], dtype=dtype, seed=0
        )
        yield fb.Sequential([fb.Embedding(3, 2, columns=3, unknown="reserve"), fb.Dense(6, 2)], dtype=dtype, seed=0)


def optimizers(model):
    """Every optimizer and schedule."""
    params, schedules = model.parameters(), fb.schedules
    yield fb.SGD(params, schedules.Step(0.1, 2), momentum=0.9, nesterov=True)
    yield fb.SGD(params, 0.1)
    yield fb.Adam(params, schedules.Cosine(0.1, 9))
    yield fb.AdamW(params, schedules.OneCycle(0.1, 9), clip_norm=1.0, decay_bias=False)
    yield fb.RMSprop(params, schedules.Exponential(0.1, 0.9), momentum=0.5)
    yield fb.Adagrad(params, schedules.InverseScaling(0.1))


X, Y = np.ones((5, 3)), np.ones((5, 2))


def real_files(kind):
    """What fastbp writes."""
    for model in architectures():
        if kind == "checkpoint":
            for optimizer in optimizers(model):
                model.fit(X, Y, "mse", optimizer, verbose=0, callbacks=[fb.Checkpoint(PATH)])
                yield read_file()
        else:
            fastbp.safetensors.save(model, PATH) if kind == "safetensors" else model.save(PATH)
            yield read_file()


def read_file():
    with open(PATH, "rb") as file:
        return file.read()


def write_file(data):
    with open(PATH, "wb") as file:
        file.write(data)


# --- what is asked of a reader ----------------------------------------------------------------------------------------


def works(model):
    """The model can be used, saved and read again."""
    if model.inputs * model.outputs < 10**6:
        x = np.zeros((2, model.inputs))
        expected = model.predict(x)
        model.save(PATH)
        again = fb.load(PATH)
        assert again.model.config() == model.model.config()
        np.testing.assert_array_equal(again.predict(x), expected)


def read_model(data):
    write_file(data)
    works(fb.load(PATH))


def read_checkpoint(data):
    write_file(data)
    model, optimizer, epochs = fb.Checkpoint.load(PATH)
    assert epochs >= 0
    works(model)
    if model.inputs * model.outputs < 10**6:
        try:
            x, y = np.zeros((2, model.inputs)), np.ones((2, model.outputs))
            model.fit(x, y, "mse", optimizer, verbose=0, callbacks=[fb.Checkpoint(PATH)])
        except fb.DivergenceError:  # of weights that the file has
            pass
        except ValueError as error:  # settings that are in range each, but not together
            if not str(error).startswith("lr:"):
                raise
        else:
            fb.Checkpoint.load(PATH)


TARGETS = list(architectures())


def read_safetensors(data):
    write_file(data)
    damaged = 0
    for model in TARGETS:
        before = model.parameters().values.tobytes() + model.model.statistics.tobytes()
        try:
            fastbp.safetensors.load(model, PATH)
        except fb.FileFormatError:
            assert model.parameters().values.tobytes() + model.model.statistics.tobytes() == before
            damaged += 1
        assert np.isfinite(model.parameters().values).all()
        model.predict(np.zeros((2, model.inputs)))
    if damaged == len(TARGETS):
        raise fb.FileFormatError("none")


READERS = {"load": read_model, "checkpoint": read_checkpoint, "safetensors": read_safetensors}


# --- mutations of what the bytes say ----------------------------------------------------------------------------------


def mutated(value, rng):
    """JSON with one thing in it changed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        value = value.copy()
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        what = rng.random()
        if what < 0.85:
            value[key] = mutated(value[key], rng)
        elif what < 0.9:
            del value[key]
        elif isinstance(value, list):
            value.insert(key, rng.choice([*HOSTILE, *value]))
        else:
            value[str(rng.choice([*HOSTILE, *value]))] = value.pop(key)
        return value
    if isinstance(value, (int, float)) and rng.random() < 0.3:
        return value + rng.choice([-1, 1, 0.5, 2**40])
    return rng.choice(HOSTILE)


def mutated_zip(data, rng):
    """An ``.npz`` file with another header, or another member, and the checksums that belong to it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = "header.npy" if rng.random() < 0.7 else rng.choice(list(members))
    if name == "header.npy":
        header = json.loads(str(np.load(io.BytesIO(members[name]))))
        members[name] = npy(np.array(json.dumps(mutated(header, rng))))
    else:
        array = np.load(io.BytesIO(members[name]))
        what = rng.randrange(7)
        if what == 0:
            array = array.astype(rng.choice(["f2", ">f4", "f8", "i1", "u8", "U3", "?", "c8"]))
        elif what == 1:
            array = array.reshape(rng.choice([(-1,), (1, -1), (-1, 1), (1, -1, 1)]))
        elif what == 2:
            array = np.resize(array, rng.choice([(), (0,), (1,), (2, 3), (4,), array.size]))
        elif what == 3:
            array = array * np.array(rng.choice([np.nan, np.inf, -1, 0, 1e300]), "f8").astype(array.dtype)
        members[name] = npy(array)
        if what == 4:
            members[name] = rng.choice([b"'shape': (", b"'descr': '<"]).join(
                part if i == 0 else rng.choice([b"", b"9", b"1", b"-", b"9" * 18, b"0, "]) + part
                for i, part in enumerate(members[name].replace(b"'descr': '<", b"'shape': (").split(b"'shape': ("))
            )
        elif what == 5:
            del members[name]
        elif what == 6:
            members[rng.choice([*members, "x.npy", "0.weight", "checkpoint.v.npy"])] = members.pop(name)
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member, method)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def mutated_safetensors(data, rng):
    """A safetensors file with another header."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(mutated(json.loads(data[8 : 8 + size]), rng)).encode()
    if rng.random() < 0.1:
        header = header.replace(b"F32", rng.choice([b"F64", b"BF16", b"F16", b"I8", b"F8_E4M3", b"BOOL"]))
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def mutation(kind):
    change = mutated_safetensors if kind == "safetensors" else mutated_zip

    def mutate(data, size, seed):
        rng = random.Random(seed)
        if rng.random() < 0.5:
            try:
                for _ in range(rng.choice([1, 1, 1, 2, 4])):
                    data = change(data, rng)
            except Exception:  # the bytes say nothing any more
                return atheris.Mutate(data, size)
            if len(data) <= size:
                return data
        return atheris.Mutate(data, size)

    return mutate


def main(kind, seconds):
    """Read files of a kind, load, checkpoint or safetensors, for so many seconds."""
    fb.set_num_threads(1)
    corpus = os.path.join(FOLDER.name, "corpus")
    os.mkdir(corpus)
    for i, data in enumerate(real_files(kind)):
        with open(os.path.join(corpus, f"{i}"), "wb") as file:
            file.write(data)
    read = READERS[kind]

    def test_one_input(data):
        with contextlib.suppress(fb.FileFormatError):
            read(data)

    limits = ["-max_len=16384", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=20"]
    arguments = [sys.argv[0], corpus, f"-max_total_time={seconds}", "-print_final_stats=1", *limits]
    atheris.Setup(arguments, test_one_input, custom_mutator=mutation(kind))
    np.seterr(all="ignore")  # of weights that a file made huge
    atheris.Fuzz()
