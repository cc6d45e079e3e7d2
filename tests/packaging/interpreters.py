"""The Pythons of this machine that the wheel is meant for."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

_ABOUT = (
    "import json, sys, importlib.util as u; "
    "print(json.dumps([sys.version_info[:2], sys.executable, u.find_spec('pip') is not None]))"
)


def _candidates() -> list[str]:
    named = [shutil.which(f"python3.{minor}") for minor in range(10, 20)]
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    return [sys.executable, *filter(None, named), *map(str, sorted(root.glob("3.*/bin/python")))]


@functools.cache
def interpreters() -> dict[str, str]:
    """Version to executable, one for each version from 3.10 on that has pip."""
    found: dict[str, str] = {}
    for candidate in _candidates():
        asked = subprocess.run([candidate, "-c", _ABOUT], capture_output=True, text=True)
        if asked.returncode == 0:
            (major, minor), executable, has_pip = json.loads(asked.stdout)
            if (major, minor) >= (3, 10) and has_pip:
                found.setdefault(f"{major}.{minor}", executable)
    return found
