"""Commands run in this process: `command` returns the exit code and what was printed."""

import json
from typing import NamedTuple

import pytest

from glm5_ops import _native
from glm5_ops.cli import main


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def command(capsys):
    def run(*words: str) -> Said:
        limit = _native.current_isa()
        code = main([str(word) for word in words])
        assert _native.current_isa() == limit, "a command must leave the instruction set as it was"
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def candidate(tmp_path, monkeypatch):
    """Writes a module with a function `f` into a new current folder, and names the function."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "stranger") -> str:
        name = f"{name}_{abs(hash((text, str(tmp_path))))}"  # modules are remembered by name
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:f"

    return write
