"""scikit-learn's own tests of its MLP, run on ours: what they import as MLPClassifier and MLPRegressor is fastbp's."""

import importlib.util
import types
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
spec = importlib.util.find_spec("sklearn.neural_network.tests.test_mlp")
if spec is None or spec.origin is None:
    pytest.skip("scikit-learn is installed without its tests", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # they are written for their own settings

THEIRS = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
OURS = "from fastbp.sklearn import MLPClassifier, MLPRegressor"
NOT_OURS = {"test_gradient": "it calls _loss_grad_lbfgs, a private function of scikit-learn's"}

source = Path(spec.origin).read_text(encoding="utf-8")
suite = types.ModuleType(spec.name)
suite.__file__ = spec.origin
exec(compile(source.replace(THEIRS, OURS), spec.origin, "exec"), vars(suite))


@pytest.fixture
def global_random_seed():
    """Of scikit-learn's conftest."""
    return 42


for name, test in vars(suite).items():
    if name.startswith("test_"):
        globals()[name] = pytest.mark.skip(reason=NOT_OURS[name])(test) if name in NOT_OURS else test


def test_that_it_is_ours_that_is_tested():
    assert source.count(THEIRS) == 1
    assert suite.MLPClassifier.__module__ == suite.MLPRegressor.__module__ == "fastbp.sklearn"
