import gc
import os

# Threads of torch's OpenMP that wait for work shall sleep: spinning, they took most of the tests' time. Read once, when
# torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from tests import harness


def pytest_report_header() -> list[str]:
    lines = [f"glm5_ops targets: {', '.join(str(t) for t in harness.TARGETS)}; torch {torch.__version__}"]
    return lines + [f"not run here: {reason}" for reason in harness.ABSENT]


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of cases, which stay until the end


@pytest.fixture(autouse=True)
def _on_target(request: pytest.FixtureRequest):
    """A test that is parametrised by target runs on it."""
    target = getattr(request.node, "callspec", None) and request.node.callspec.params.get("target")
    if target is None:
        yield
    else:
        with target.active():
            yield
