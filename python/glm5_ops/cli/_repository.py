"""The source checkout, where there is one, and the parts of it that belong to an op."""

import subprocess
from pathlib import Path

import glm5_ops

ISAS = ("generic", "avx2", "avx512", "amx")


def repository() -> Path | None:
    """The checkout that glm5_ops was imported from, else the one that the current folder lies in."""
    for start in (Path(glm5_ops.__file__).resolve(), Path.cwd() / "here"):
        for folder in start.parents:
            if (folder / "csrc" / "module.cpp").is_file() and (folder / "python" / "glm5_ops").is_dir():
                return folder
    return None


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` where files differ from it."""
    root = repository()
    if root is None:
        return None
    found, changed = _git(root, "rev-parse", "--short=12", "HEAD"), _git(root, "status", "--porcelain")
    return f"{found}-dirty" if found and changed else found


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def files_of(stem: str) -> list[str]:
    """The files of an op, relative to the checkout; none without a checkout."""
    root = repository()
    if root is None:
        return []
    rooms = [f"python/glm5_ops/{room}/{stem}.py" for room in ("ops", "reference", "workloads")]
    rooms += [f"tests/ops/test_{stem}.py", f"bench/ops/bench_{stem}.py"]
    native = sorted(str(path.relative_to(root)) for path in (root / "csrc" / "ops" / stem).glob("*.*"))
    return native + [room for room in rooms if (root / room).is_file()]


def machines_of(stem: str, kernel_files: list[str] | None) -> list[str] | None:
    """The machines an op has kernels for, ascending, with sm_90a last; None where nothing tells.

    Args:
        stem: the op's folder.
        kernel_files: ``<op>/<file>`` of what was compiled, as the extension lists it; None: look into the checkout.
    """
    if kernel_files is None:
        kernel_files = [file.removeprefix("csrc/ops/") for file in files_of(stem) if file.startswith("csrc/")]
    stems = [file.split("/")[1] for file in kernel_files if file.startswith(f"{stem}/")]
    if not stems:
        return None
    found = [isa for isa in ISAS if any(s == f"{isa}.cpp" or s.endswith(f"_{isa}.cpp") for s in stems)]
    return found + ["sm_90a"] * any(s.endswith("sm90.cu") for s in stems)
