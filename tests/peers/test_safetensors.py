"""Files that PyTorch reads and writes: the same outputs on both sides."""

import numpy as np
import pytest

import fastbp as fb

pytest.importorskip("safetensors")
torch = pytest.importorskip("torch")
files = pytest.importorskip("fastbp.safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402

nn = torch.nn


def pair(dtype="float32"):
    """The same layers here and there, in every kind that has weights and some that have none."""
    model = fb.Sequential(
        [fb.Dense(6, 8, activation="relu"), fb.BatchNorm(8), fb.Dense(8, 7, bias=False), fb.LayerNorm(7),
         fb.Activation("tanh"), fb.Dropout(0.3), fb.Dense(7, 3)], dtype=dtype, seed=0,
    )  # fmt: skip
    net = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 7, bias=False), nn.LayerNorm(7), nn.Tanh(),
        nn.Dropout(0.3), nn.Linear(7, 3),
    )  # fmt: skip
    return model, net.to(getattr(torch, dtype))


def trained(model):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 6))
    model.fit(X, rng.standard_normal((64, 3)), "mse", fb.SGD(model.parameters(), lr=0.1), epochs=3, verbose=0)
    return X.astype(model.dtype)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_pytorch_loads_what_we_save(name, tmp_path):
    model, net = pair(name)
    X = trained(model)
    files.save(model, tmp_path / "w.safetensors")
    net.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    got = net.eval()(torch.tensor(X)).detach().numpy()
    np.testing.assert_allclose(got, model.predict(X), rtol=0, atol=20 * np.finfo(name).eps)


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float64])
def test_we_load_what_pytorch_saves(name, stored, tmp_path):
    model, net = pair(name)
    X = torch.tensor(np.random.default_rng(0).standard_normal((64, 6)).astype(name))
    net(X)  # moves the running statistics
    save_file({k: v.to(stored) if v.is_floating_point() else v for k, v in net.state_dict().items()}, tmp_path / "w")
    net.to(stored).to(getattr(torch, name)).eval()  # as the file has rounded it
    files.load(model, tmp_path / "w")
    expected = net(X).detach().numpy()
    np.testing.assert_allclose(model.predict(X.numpy()), expected, rtol=0, atol=20 * np.finfo(name).eps)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    model, net = pair()
    before = model.parameters().values.tobytes(), model.model.statistics.tobytes()
    path = tmp_path / "w"
    state = net.state_dict()

    def refused(tensors, message):
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        else:
            save_file(tensors, path)
        with pytest.raises(fb.FileFormatError, match=message):
            files.load(model, path)
        assert (model.parameters().values.tobytes(), model.model.statistics.tobytes()) == before

    refused({k: v for k, v in state.items() if k != "3.weight"}, r"\['3.weight'\] are missing, and \[\] too many")
    refused(state | {"9.weight": torch.ones(2)}, r"\[\] are missing, and \['9.weight'\] too many")
    refused(state | {"0.weight": torch.ones(6, 8)}, r"expected 0.weight to be floats of shape \(8, 6\), got float32 of")
    refused(state | {"0.bias": torch.ones(8, dtype=torch.int32)}, "expected 0.bias to be floats")
    refused(state | {"7.bias": torch.tensor([0, float("nan"), 0])}, "7.bias: expected finite numbers, got nan")
    refused(
        state | {"7.bias": torch.full((3,), 1e300, dtype=torch.float64)}, "7.bias: expected finite numbers, got inf"
    )
    save_file(state, path)
    whole = path.read_bytes()
    for damaged in (b"", b"\x80\x04.", whole[:-1], whole[:100], b"\xff" * 8 + whole[8:]):
        refused(damaged, "expected a safetensors file")
    with pytest.raises(FileNotFoundError):
        files.load(model, tmp_path / "nothing")
    with pytest.raises(TypeError, match="model: expected a fastbp model, got Sequential"):
        files.save(net, path)


def test_tables(tmp_path):
    model = fb.Sequential([fb.Embedding(9, 4), fb.Dense(4, 2)], seed=0)
    files.save(model, tmp_path / "w")
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    net.load_state_dict(load_file(tmp_path / "w"), strict=True)
    expected = net(torch.arange(9)).detach().numpy()
    np.testing.assert_allclose(model.predict(np.arange(9)[:, None]), expected, rtol=0, atol=1e-6)
    tabular, other = (fb.Sequential([fb.TabularInput(1, [5], 3), fb.Dense(4, 2)], seed=seed) for seed in (0, 1))
    files.save(tabular, tmp_path / "w")
    files.load(other, tmp_path / "w")
    assert other.predict([[0.5, 4]]).tobytes() == tabular.predict([[0.5, 4]]).tobytes()


class Around(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Beside(nn.ModuleList):
    def forward(self, x):
        return torch.cat([branch(x) for branch in self], dim=1)


class Named(nn.ModuleDict):
    def forward(self, x):
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def trees(dtype="float32"):
    """The same tree here and in modules of PyTorch's."""
    inner = fb.Concatenate([], [fb.Dense(8, 4, "relu"), fb.Dense(4, 3, bias=False)])
    heads = fb.Concatenate(policy=[fb.Dense(11, 3)], value=[fb.Residual([fb.Dense(11, 11, "tanh")]), fb.Dense(11, 1)])
    model = fb.Sequential(
        [fb.Dense(6, 8, "relu"), fb.Residual([fb.BatchNorm(8), fb.Dense(8, 8, "relu"), fb.Dense(8, 8)]), inner, heads],
        dtype=dtype, seed=0,
    )  # fmt: skip
    net = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(),
        Around(nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        Beside([nn.Sequential(), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))]),
        Named({"policy": nn.Sequential(nn.Linear(11, 3)),
               "value": nn.Sequential(Around(nn.Linear(11, 11), nn.Tanh()), nn.Linear(11, 1))}),
    )  # fmt: skip
    return model, net.to(getattr(torch, dtype))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_trees_have_pytorchs_names(name, tmp_path):
    model, net = trees(name)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((64, 6))
    model.fit(X, rng.standard_normal((64, 4)), "mse", fb.SGD(model.parameters(), lr=0.1), epochs=3, verbose=0)
    files.save(model, tmp_path / "w.safetensors")
    net.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)
    got = net.eval()(torch.tensor(X.astype(name))).detach().numpy()
    np.testing.assert_allclose(got, model.predict(X), rtol=0, atol=20 * np.finfo(name).eps)
    other, _ = trees(name)
    save_file(net.state_dict(), tmp_path / "theirs.safetensors")
    files.load(other, tmp_path / "theirs.safetensors")
    assert other.predict(X).tobytes() == model.predict(X).tobytes()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(stored, tmp_path):
    """What PyTorch makes of the same bits."""
    model, net = pair()
    half = {
        name: tensor.to(stored) if tensor.is_floating_point() else tensor for name, tensor in net.state_dict().items()
    }
    save_file(half, tmp_path / "w.safetensors")
    files.load(model, tmp_path / "w.safetensors")
    expected = half["0.weight"].to(torch.float32).numpy().T
    np.testing.assert_array_equal(model.layers[0].weight, expected)


@pytest.mark.parametrize(("stored", "exponents", "mantissas"), [(torch.bfloat16, 255, 128), (torch.float16, 31, 1024)])
def test_every_finite_number_of_16_bits_is_read_exactly(stored, exponents, mantissas, tmp_path):
    """Subnormal numbers and the sign of zero too: float32 has each of them, so that all bits are PyTorch's."""
    finite = exponents * mantissas
    patterns = np.concatenate([np.arange(finite), np.arange(finite) + 2**15]).astype(np.uint16)
    tensor = torch.from_numpy(patterns.view(np.int16)).view(stored).reshape(256, -1)
    model = fb.Sequential([fb.Dense(tensor.shape[1], 256, bias=False)], seed=0)
    save_file({"0.weight": tensor}, tmp_path / "w.safetensors")
    files.load(model, tmp_path / "w.safetensors")
    read = np.ascontiguousarray(model.layers[0].weight.T)
    assert read.tobytes() == tensor.to(torch.float32).numpy().tobytes()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_16_bits_that_are_not_finite_are_refused(stored, value, tmp_path):
    model = fb.Sequential([fb.Dense(2, 3, bias=False)], seed=0)
    before = model.layers[0].weight.tobytes()
    save_file({"0.weight": torch.full((3, 2), value, dtype=stored)}, tmp_path / "w.safetensors")
    with pytest.raises(fb.FileFormatError, match=r"0.weight: expected finite numbers"):
        files.load(model, tmp_path / "w.safetensors")
    assert model.layers[0].weight.tobytes() == before


def test_other_numbers_are_refused(tmp_path):
    model, net = pair()
    state = net.state_dict() | {"0.bias": torch.zeros(8, dtype=torch.float8_e4m3fn)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(fb.FileFormatError, match=r"expected numbers of F64, .*, got F8_E4M3"):
        files.load(model, tmp_path / "w.safetensors")
