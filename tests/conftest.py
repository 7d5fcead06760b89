"""Shape annotations are checked at run time in tests, and Hypothesis runs the same examples everywhere."""

import importlib
import os
from collections.abc import Iterator

import jaxtyping
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("linconv", "beartype.beartype")

import pytest  # noqa: E402  (the hook must come before anything imports linconv)
import torch  # noqa: E402

settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time shape checks: bad input meets the library's own errors, as it does for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def hasty() -> Iterator[None]:
    """A portfolio of little effort, for laws that hold of any solution however good it is; how good it is, test_portfolio tells."""
    module = importlib.import_module("linconv.solvers.portfolio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EFFORTS", [module.Effort(60, 2, 60, 1, 1)] * 3)
        yield


def pytest_configure(config: pytest.Config) -> None:
    # beartype picks the container entries that it looks at with `random`, inside strategies too; Hypothesis seeds that, so nothing is lost.
    config.addinivalue_line("filterwarnings", "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
