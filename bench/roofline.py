"""What this machine can do, measured by torch in the same run: bytes copied and multiply-adds of a matrix product."""

from collections.abc import Callable

import torch
from glm5_ops.bench.timing import cache_bytes
from torch import Tensor

from glm5_ops.workloads import Case

REPEATS = 7
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
MOST_COPY_BYTES = 1 << 29


def measure(device: str, clock: Callable[[Callable], float]) -> dict:
    """``copy_gb_s``, bytes read and written; ``tflop_s``, the rate of a matmul by type. The best of a few."""
    return {"copy_gb_s": _copy(device, clock), "tflop_s": _matmuls(device, clock)}


def _best(call: Callable[[], object], clock: Callable) -> float:
    call()
    return min(clock(call) for _ in range(REPEATS))


def _copy(device: str, clock: Callable) -> float:
    size = min(4 * cache_bytes(device), MOST_COPY_BYTES)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / _best(lambda: target.copy_(source), clock) / 1e3


def _matmuls(device: str, clock: Callable) -> dict[str, float]:
    size = MATMUL_SIZE[device]
    x = torch.randn(size, size, device=device)
    rates = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        y = x.to(dtype)
        rates[name] = 2 * size**3 / _best(lambda y=y: y @ y, clock) / 1e6
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        y, one = x.to(torch.float8_e4m3fn), torch.ones((), device=device)
        call = lambda: torch._scaled_mm(y, y.t(), one, one, out_dtype=torch.bfloat16)  # noqa: E731
        rates["e4m3"] = 2 * size**3 / _best(call, clock) / 1e6
    return rates


def floor_us(case: Case, inputs: dict, roof: dict) -> tuple[float, str]:
    """The shortest time this machine allows the case, and what sets it: memory or arithmetic."""
    memory = case.bytes_moved() / roof["copy_gb_s"] / 1e3
    arithmetic = case.flops() / _rate(inputs, roof["tflop_s"]) / 1e6
    return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")


def _rate(inputs: dict, rates: dict[str, float]) -> float:
    """The best rate of any type at least as wide as the operands: a narrow type can always be widened."""
    operand = next(v for v in inputs.values() if isinstance(v, Tensor))
    if operand.element_size() == 4:
        return rates["f32"]
    return max(rates.values()) if operand.element_size() == 1 else max(rates["f32"], rates["bf16"])
