"""What a figure was measured on."""

import os
import platform
import subprocess
from pathlib import Path

import torch

import glm5_ops
from glm5_ops import _native

_GPU_FIELDS = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"


def bf16_would_take_minutes(flops: int, device: torch.device) -> bool:
    """Whether a product of this size is too much for torch, which does 10^9 a second without bf16 instructions."""
    return device.type == "cpu" and flops > 1e10 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def machine(device: str) -> dict:
    """Processor, GPU with clocks and power, threads and versions."""
    found = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _native.isa_names()[_native.current_isa()],
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "glm5_ops": glm5_ops.__version__,
        "compiler": _native.compiler,
        "system": platform.platform(),
    }
    return found | {"gpu": _gpu(), "cuda": _native.cuda_version} if device == "cuda" else found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _gpu() -> dict:
    command = [
        "nvidia-smi",
        f"--query-gpu={_GPU_FIELDS}",
        "--format=csv,noheader",
        f"--id={torch.cuda.current_device()}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"name": torch.cuda.get_device_name()}
    return dict(zip(_GPU_FIELDS.split(","), done.stdout.strip().split(", "), strict=True))
