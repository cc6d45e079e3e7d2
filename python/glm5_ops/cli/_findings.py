"""What doctor concludes: each finding has a cause and the command that mends it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# What csrc/cpu/isa.cpp asks of the processor, by Linux's names.
NEEDS = {
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vbmi"),
    "amx": ("amx_tile", "amx_bf16"),
}
LEVEL_FLAGS = {flag for flags in NEEDS.values() for flag in flags}
OLDEST_TORCH = (2, 6)
# The driver branch that a major version of the CUDA runtime needs; within a major version older drivers serve.
DRIVER_OF_CUDA = {12: "525", 13: "580"}
GPU_ARCHITECTURE = [9, 0]


class Finding(NamedTuple):
    level: str  # WARN: something is slower than it could be, or absent; FAIL: glm5_ops does not work
    cause: str
    mend: str


def fail(cause: str, mend: str) -> Finding:
    return Finding("FAIL", cause, mend)


def warn(cause: str, mend: str) -> Finding:
    return Finding("WARN", cause, mend)


def of(found: dict, root: Path | None) -> list[Finding]:
    """All findings, in the order in which they should be mended."""
    if "error" in found.get("python", {}):
        return [fail(f"a second Python process cannot start: {found['python']['error']}", "python -V")]
    parts = (_torch(found), _native(found, root), _cpu(found), _threads(found), gpu(found, root))
    return [finding for part in parts for finding in part]


def rebuild(root: Path | None, how: str = "") -> str:
    return f"{how}pip install --force-reinstall --no-deps {root if root else 'glm5-ops'}"


def _torch(found: dict) -> Iterator[Finding]:
    torch = found.get("torch", {})
    error = torch.get("error", "")
    version = tuple(int(number) for number in re.findall(r"\d+", torch.get("version", ""))[:2])
    if "No module named 'torch'" in error:
        on_cpu = "--index-url https://download.pytorch.org/whl/cpu"
        yield fail(
            "torch is missing: the ops are operators of torch",
            f"pip install 'torch>=2.6'   (on a machine without a GPU: {on_cpu})",
        )
    elif error:
        yield fail(f"importing torch failed: {error}", "pip install --force-reinstall 'torch>=2.6'")
    elif version and version < OLDEST_TORCH:
        yield fail(f"torch {torch['version']} is too old: 2.6 is the first supported", "pip install -U 'torch>=2.6'")


def _native(found: dict, root: Path | None) -> Iterator[Finding]:
    error = found.get("native", {}).get("error", "")
    registering = found.get("ops", {}).get("error", "")
    if "nanobind_backend" in error:
        yield fail("the run-time part of the bindings, nanobind-backend, is missing", "pip install nanobind-backend")
    elif "ModuleNotFoundError" in error or "cannot import name '_native'" in error:
        yield fail("the extension glm5_ops._native is missing: this is a bare source folder", rebuild(root))
    elif "GLIBC" in error:
        yield fail(f"the extension was built for a newer Linux: {error}", rebuild(root))
    elif error:
        yield fail(f"importing the extension failed: {error}", rebuild(root))
    elif registering and "version" in found.get("torch", {}):
        yield fail(f"registering the ops with torch failed: {registering}", rebuild(root))


def _cpu(found: dict) -> Iterator[Finding]:
    flags, detected = found["cpu"]["flags"], found.get("native", {}).get("detected_isa")
    if detected is None or not flags:
        return
    if not any(_lacking(flags, isa) for isa in NEEDS) and detected != "amx":
        yield warn(
            f"the processor has AMX, but Linux refuses it to this process; {detected} is used",
            "use Linux 5.16 or later; in a container: docker run --security-opt seccomp=unconfined",
        )
    if _lacking(flags, "avx2"):
        yield warn(
            f"the processor lacks {_lacking(flags, 'avx2')}: the generic kernels are used, which are slow",
            "use a later processor, or a virtual machine that shows its processor's flags (qemu -cpu host)",
        )


def levels(flags: list[str]) -> str:
    """Every instruction set: there, or what it lacks."""
    lacking = {isa: _lacking(flags, isa) for isa in NEEDS}
    return "; ".join(f"{isa} no (needs {flags})" if flags else f"{isa} yes" for isa, flags in lacking.items())


def _lacking(flags: list[str], isa: str) -> str:
    return " ".join(flag for flag in NEEDS[isa] if flag not in flags)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads(found: dict) -> Iterator[Finding]:
    torch, native, both = (found.get(stage, {}) for stage in ("torch", "native", "threads"))
    if "threads" not in torch or "threads" not in native:
        return
    cores = found["cpu"]["cores"]
    if "error" in both:
        yield warn(f"changing the number of threads failed: {both['error']}", "report it with this output")
    elif both.get("shared") is False:
        yield warn(
            "the kernels and torch do not share one OpenMP runtime, so they compete for the cores",
            "unset LD_PRELOAD; import torch before other libraries with threads",
        )
    if torch["threads"] == 1 < cores:
        yield warn(f"torch and the kernels use 1 thread on {cores} cores", f"export OMP_NUM_THREADS={cores}")


def gpu(found: dict, root: Path | None) -> Iterator[Finding]:
    """Driver, runtime and architecture against each other."""
    gpu, native, torch = (found.get(stage, {}) for stage in ("gpu", "native", "torch"))
    if "error" in gpu:
        yield warn(
            f"asking the GPU driver failed: {gpu['error']}", "nvidia-smi   (if it fails too, reinstall the driver)"
        )
    if not gpu.get("driver"):
        return
    if gpu["status"] != 0 or not gpu["gpus"]:
        yield warn(
            f"a GPU driver is installed but offers no GPU (cuInit gave {gpu['status']})",
            "nvidia-smi   (in a container: docker run --gpus all)",
        )
        return
    others = [one for one in gpu["gpus"] if one["architecture"] != GPU_ARCHITECTURE]
    if others:
        name = "{} (sm_{}{})".format(others[0]["name"], *others[0]["architecture"])
        yield warn(
            f"the CUDA kernels are for sm_90a (H100, H200); this GPU is a {name}",
            "use the references there, which have the same functions: from glm5_ops import reference as ops",
        )
    if native.get("with_cuda"):
        yield from _driver(gpu["cuda"], native["cuda_version"], "glm5_ops")
    elif "with_cuda" in native and not others:
        yield warn("there is a GPU, but this build has no CUDA kernels", rebuild(root, "GLM5_OPS_CUDA=wheels "))
    if torch.get("cuda"):
        yield from _driver(gpu["cuda"], torch["cuda"], "torch")
    elif "version" in torch:
        index = "https://download.pytorch.org/whl/" + ("cu130" if gpu["cuda"][0] >= 13 else "cu126")
        yield warn(
            f"there is a GPU, but torch {torch['version']} is a build for the CPU",
            f"pip install --force-reinstall torch --index-url {index}",
        )


def _driver(driver: list[int], runtime: str, whose: str) -> Iterator[Finding]:
    major = int(runtime.split(".")[0])
    if driver[0] < major:
        branch = DRIVER_OF_CUDA.get(major, "of a later branch")
        yield fail(
            f"{whose} was built with CUDA {runtime}, but the driver serves CUDA {driver[0]}.{driver[1]} at most",
            f"install an NVIDIA driver {branch} or later, or a {whose} built with CUDA {driver[0]}",
        )
