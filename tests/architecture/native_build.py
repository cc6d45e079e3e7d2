"""What the build says about its files: the flags of an instruction set, read from CMakeLists.txt."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def isa_flags(source: Path) -> list[str]:
    """The -m flags with which CMake compiles a file of csrc/ops, by its name."""
    isa = re.search(r"(avx2|avx512|amx)\.cpp$", source.name)
    if isa is None:
        return []
    sets = dict(re.findall(r"^set\((avx2|avx512|amx) ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.M))

    def expand(name: str) -> list[str]:
        flags = []
        for word in sets[name].split():
            flags += expand(word[2:-1]) if word.startswith("${") else [word]
        return flags

    return expand(isa[1])
