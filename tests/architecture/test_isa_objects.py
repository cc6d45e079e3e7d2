"""An object compiled for an instruction set defines its entry points and no weak symbol.

The linker keeps one copy of a weak symbol, whichever object it came from: a helper compiled with AVX-512 would then
run, and trap, on a machine without it.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.native_build import isa_flags

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "csrc" / "ops").glob("*/*.cpp"))
ISA_FILES = [f for f in FILES if re.search(r"(avx2|avx512|amx)\.cpp$", f.name)]


def weak_symbols(source: Path, flags: list[str], folder: Path) -> list[str]:
    """Weak definitions in the object of a source, compiled without optimisation, where nothing is inlined by chance."""
    compiled = folder / "object.o"
    subprocess.run(
        ["g++", "-std=c++20", "-O0", "-fPIC", *flags, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(compiled)],
        check=True,
    )
    symbols = subprocess.run(["nm", "-C", "--defined-only", str(compiled)], check=True, capture_output=True, text=True)
    return [line for line in symbols.stdout.splitlines() if re.search(r"^\S+ [WVu] ", line)]


@pytest.mark.parametrize("source", ISA_FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_an_isa_object_has_no_weak_symbol(source, tmp_path):
    assert weak_symbols(source, isa_flags(source), tmp_path) == []


def test_a_planted_vector_is_found(tmp_path):
    source = tmp_path / "avx2.cpp"
    source.write_text("#include <vector>\nint f() { std::vector<int> v(3); return v.size(); }\n")
    assert weak_symbols(source, ["-mavx2"], tmp_path)
