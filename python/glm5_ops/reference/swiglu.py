"""out = silu(gate) * up;  silu(g) = g / (1 + e^-g)"""

import torch
from torch import Tensor

from glm5_ops.reference.quantize_fp8 import quantize_fp8


def swiglu(gate_up: Tensor, limit: float | None = None, offsets: Tensor | None = None) -> Tensor:
    gate, up = _held(gate_up, limit, offsets)
    return _rounded(torch.nn.functional.silu(gate) * up)


def swiglu_fp8(
    gate_up: Tensor,
    limit: float | None = None,
    offsets: Tensor | None = None,
    power_of_two: bool = False,
    amax_floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    return quantize_fp8(swiglu(gate_up, limit, offsets), "1x128", power_of_two, amax_floor)


def swiglu_bwd(d_out: Tensor, gate_up: Tensor, limit: float | None = None, offsets: Tensor | None = None) -> Tensor:
    gate, up = _held(gate_up, limit, offsets)
    d_out = d_out.to(gate.dtype)
    s = torch.sigmoid(gate)
    gradient = torch.cat((d_out * up * s * (1 + gate * (1 - s)), d_out * gate * s), dim=1)
    if limit is not None:
        held_gate, held_up = gate_up.chunk(2, dim=1)
        gradient = torch.where(torch.cat((held_gate > limit, held_up.abs() > limit), dim=1), 0.0, gradient)
    return torch.where(_is_live(gate_up, offsets), gradient, 0.0).to(gate_up.dtype)


def _held(gate_up: Tensor, limit: float | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = torch.where(_is_live(gate_up, offsets), gate_up, 0.0).to(torch.promote_types(gate_up.dtype, torch.float32))
    gate, up = wide.chunk(2, dim=1)
    return (gate, up) if limit is None else (gate.clamp(max=limit), up.clamp(-limit, limit))


def _is_live(gate_up: Tensor, offsets: Tensor | None) -> Tensor:
    rows = torch.arange(len(gate_up), device=gate_up.device)[:, None]
    return rows >= 0 if offsets is None else rows < offsets[-1]


def _rounded(out: Tensor) -> Tensor:
    return out if out.dtype == torch.float64 else out.bfloat16()
