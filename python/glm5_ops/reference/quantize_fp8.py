"""scale = max(amax, amax_floor) / 448;  value = e4m3(x / scale)"""

from itertools import pairwise

import torch
from torch import Tensor


def quantize_fp8(
    x: Tensor, group: str, power_of_two: bool = False, amax_floor: float = 1e-4, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if group == "128x1":
        return _columns(x, power_of_two, amax_floor, offsets)
    height = 128 if group == "128x128" else 1
    rows, cols = x.shape
    x = x.float()
    padded = x.new_zeros(rows + -rows % height, cols + -cols % 128)
    padded[:rows, :cols] = x
    blocks = padded.view(padded.shape[0] // height, height, padded.shape[1] // 128, 128)
    finite = torch.where(blocks.isfinite(), blocks, 0)
    amax = finite.abs().amax(dim=(1, 3)) if blocks.numel() else blocks.sum(dim=(1, 3))
    scales = amax.clamp(min=amax_floor) / 448
    if power_of_two:
        mantissa, exponent = torch.frexp(scales)  # scale = mantissa * 2^exponent, 0.5 <= mantissa < 1
        scales = torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).to(exponent.dtype))
    quotient = (finite / scales[:, None, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    values = torch.where(blocks.isfinite(), quotient.view(torch.uint8), 0x7F).view(torch.float8_e4m3fn)
    values = values.view(padded.shape)[:rows, :cols].contiguous()
    return values, scales if group == "128x128" else scales.t().contiguous().t()


def _columns(x: Tensor, power_of_two: bool, amax_floor: float, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """128x1 is 1x128 of the transposed matrix, for each expert's rows by themselves."""
    if offsets is None:
        return quantize_fp8(x.t(), "1x128", power_of_two, amax_floor)
    rows, cols = x.shape
    bounds = offsets.tolist()
    values = torch.zeros(cols, rows, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.zeros(rows // 128 + len(bounds) - 1, cols, device=x.device).t()
    for expert, (begin, end) in enumerate(pairwise(bounds)):
        v, s = quantize_fp8(x[begin:end].t(), "1x128", power_of_two, amax_floor)
        values[:, begin:end] = v
        first = begin // 128 + expert
        scales[:, first : first + s.shape[1]] = s
    return values, scales
