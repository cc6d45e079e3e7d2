"""Programs that no one here wrote, compiled for the emulator: CUTLASS's and CUB's kernels behind a C function each.

A compilation takes a minute or two and up to 4 GB, so what was made is kept in build/emulator/programs under a name
that says from which sources, headers and compiler it came.
"""

import ctypes
import fcntl
import hashlib
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

from tests.emulator import build, device

SOURCES = Path(__file__).parent / "programs"
FLAGS = ("-std=c++20", "-lineinfo", "--expt-relaxed-constexpr", "-gencode", "arch=compute_90a,code=compute_90a",
         "-shared", "-Xcompiler", "-fPIC,-fno-gnu-unique,-O1", "-cudart", "none")  # fmt: skip


def _includes() -> list[Path]:
    cutlass = Path(find_spec("cutlass_library").submodule_search_locations[0]) / "source"
    return [cutlass / "include", cutlass / "tools" / "util" / "include"]


def _fingerprint(source: Path) -> str:
    version = subprocess.run([build.nvcc_path(), "--version"], capture_output=True, text=True, check=True).stdout
    cutlass = (_includes()[0] / "cutlass" / "version.h").read_text()
    digest = hashlib.sha256(f"{version} {FLAGS} {build.RUNTIME} {cutlass}".encode())
    text = source.read_text()
    digest.update(text.encode())
    for header in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
        digest.update((SOURCES / header).read_bytes())
    return digest.hexdigest()[:16]


def compiled(name: str) -> Path:
    """The shared library of programs/<name>.cu; compiled where there is none of these sources yet."""
    source, emulator = SOURCES / f"{name}.cu", build.build()
    folder = emulator / "programs"
    folder.mkdir(exist_ok=True)
    made = folder / f"{name}-{_fingerprint(source)}.so"
    if made.exists():
        return made
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: each needs gigabytes
        if made.exists():
            return made  # another process was faster
        for old in folder.glob(f"{name}-*.so"):
            old.unlink()
        unfinished = folder / f"{name}.unfinished"
        headers = [word for folder in _includes() for word in ("-isystem", str(folder))]
        libraries = [f"-L{emulator}", f"-l:{build.RUNTIME}", "-Xlinker", f"-rpath={emulator}"]
        command = [build.nvcc_path(), *FLAGS, *headers, str(source), "-o", str(unfinished), *libraries]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return unfinished.rename(made)


def load(name: str) -> ctypes.CDLL:
    device.library()  # its name is what the program asks for
    return ctypes.CDLL(str(compiled(name)))
