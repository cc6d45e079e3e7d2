"""Builds the emulator and the library against it, into build/emulator, when their sources changed."""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "emulator"
SUPPORTED_NVCC = "13.0"
RUNTIME = "libglm5_emulated_cudart.so"  # what emulated programs link, for the runtime's and the driver's functions
WHEELS = (
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cutlass==4.2.0.0",
)


def _sources() -> list[Path]:
    patterns = ("csrc/**/*.cpp", "csrc/**/*.h", "csrc/**/*.cu", "csrc/**/*.cuh", "cmake/cuda.cmake")
    own = ("tests/emulator/CMakeLists.txt", "tests/emulator/csrc/*")
    return sorted(path for pattern in (*patterns, *own) for path in ROOT.glob(pattern))


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{sys.executable} {nvcc_path()}".encode())
    for path in _sources():
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def nvcc_path() -> str | None:
    """The compiler of cmake/cuda.cmake: CUDACXX, that of the PyPI toolchain wheels, or that on PATH."""
    named = os.environ.get("CUDACXX")
    if named is not None:
        return shutil.which(named)
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        wheel = Path(folder) / "cu13" / "bin" / "nvcc"
        if wheel.exists():
            return str(wheel)
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def missing() -> str | None:
    """What the build lacks, in a sentence; None if it can be tried."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "the emulator runs on Linux on x86-64 only"
    flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    if not {"avx2", "fma", "f16c"} <= set(flags):
        return "the emulator needs a processor with AVX2, FMA and F16C"
    nvcc = nvcc_path()
    if nvcc is None:
        return f"no nvcc was found; install CUDA {SUPPORTED_NVCC}, or: pip install {' '.join(WHEELS)}"
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if f"release {SUPPORTED_NVCC}" not in version:
        return f"the emulator knows the PTX of nvcc {SUPPORTED_NVCC}; {nvcc} is another version"
    if _tool("cmake") is None or _tool("ninja") is None:
        return "the emulator's build needs cmake and ninja: pip install cmake ninja"
    if find_spec("nanobind") is None:
        return "the emulator's build needs nanobind: pip install nanobind"
    return None


def _tool(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as out:
        result = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        shown = [line for line in log.read_text().splitlines() if "error" in line.lower()][:5]
        raise RuntimeError(f"the emulator's build failed ({log}): " + (" | ".join(shown) or f"{command[0]} failed"))


@functools.cache
def build() -> Path:
    """The folder with the emulator's library, RUNTIME, and _native_emulated, brought up to date.

    Raises:
        RuntimeError: it cannot be built, with the reason in a sentence.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    stamp, log = FOLDER / "built", FOLDER / "build.log"
    reason = missing()
    if reason:
        raise RuntimeError(reason)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build at a time, whoever asks
        fingerprint = _fingerprint()
        if not stamp.exists() or stamp.read_text() != fingerprint:
            _build(log)
            stamp.write_text(fingerprint)
    return FOLDER


def _build(log: Path) -> None:
    log.write_text("")
    jobs = str(max(1, min(len(os.sched_getaffinity(0)), 2)))
    source = str(Path(__file__).parent)
    nvcc = Path(nvcc_path())
    compiler = [f"-DCMAKE_CUDA_COMPILER={nvcc}"] if "site-packages" not in nvcc.parts else []
    given = [f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}", *compiler]
    _run([_tool("cmake"), "-G", "Ninja", *given, "-S", source, "-B", str(FOLDER)], log)
    _run([_tool("ninja"), "-C", str(FOLDER), "-j", jobs], log)


if __name__ == "__main__":
    print(build())
