import pytest

from tests import emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the emulator its own tests are skipped, and the reason is shown."""
    here = [item for item in items if "tests/emulator" in str(item.path)]
    reason = emulator.available() if here else None
    for item in here if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))
