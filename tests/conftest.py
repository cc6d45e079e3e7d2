import pytest
import torch

from tests import harness


def pytest_report_header() -> list[str]:
    lines = [f"glm5_ops targets: {', '.join(str(t) for t in harness.TARGETS)}; torch {torch.__version__}"]
    return lines + [f"not run here: {reason}" for reason in harness.ABSENT]


@pytest.fixture(autouse=True)
def _on_target(request: pytest.FixtureRequest):
    """A test that is parametrised by target runs on it."""
    target = getattr(request.node, "callspec", None) and request.node.callspec.params.get("target")
    if target is None:
        yield
    else:
        with target.active():
            yield
