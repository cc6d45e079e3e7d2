"""key = bf16(H rope(LayerNorm(k)));  cache[slot] = key, or e4m3(key / scale) and scale = max(amax, 1e-4) / 448

Sums of 128 are written as the op's header orders them, so that the op can be met to the bit.
"""

import torch
from torch import Tensor


def indexer_cache_append(
    k: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache_slots: Tensor,
    cache: Tensor,
    eps: float = 1e-6,
    hadamard: bool = False,
    power_of_two: bool = True,
    check_indices: bool = False,
) -> None:
    kept = cache_slots >= 0
    page, row = cache_slots[kept] // 64, cache_slots[kept] % 64
    x = k[kept] if k.dtype == torch.float64 else k[kept].float()
    x = _normalised(x, norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps)
    x = _rotated(x, cos_sin[positions[kept].long()].to(x.dtype))
    key = (_mixed(x) if hadamard else x).to(torch.bfloat16)
    if cache.dtype == torch.bfloat16:
        cache[page, row] = key
        return
    values, scales = _quantised(key.float(), power_of_two)
    cache[:, : 64 * 128].unflatten(1, (64, 128))[page, row] = values
    cache[:, 64 * 128 :].view(torch.float32)[page, row] = scales


def _sum(x: Tensor) -> Tensor:
    a, b, c, d = x.unflatten(1, (4, 32)).unbind(1)
    chains = a + b + c + d
    while chains.shape[1] > 1:
        low, high = chains.chunk(2, dim=1)
        chains = low + high
    return chains


def _normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = x - _sum(x) / 128
    variance = _sum(x * x) / 128
    root = (variance + eps).double().sqrt().to(x.dtype)  # torch's own square root in f32 is not always the nearest
    return x * (1 / root) * weight + bias


def _rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    even, odd = x[:, :64].unflatten(1, (32, 2)).unbind(2)
    cosine, sine = cos_sin.unbind(2)
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=2)
    return torch.cat((turned.flatten(1), x[:, 64:]), dim=1)


def _mixed(x: Tensor) -> Tensor:
    """x H / sqrt(128), H Sylvester's matrix: stages of sums and differences at distances 1, 2, 4, .. 64."""
    for distance in (1, 2, 4, 8, 16, 32, 64):
        left, right = x.unflatten(1, (-1, 2, distance)).unbind(2)
        x = torch.stack((left + right, left - right), dim=2).flatten(1)
    return x * torch.tensor(128.0**-0.5, dtype=x.dtype, device=x.device)


def _quantised(key: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    finite = torch.where(key.isfinite(), key, 0)
    scales = finite.abs().amax(dim=1).clamp(min=1e-4) / 448 if len(key) else key.sum(dim=1)
    if power_of_two:
        mantissa, exponent = torch.frexp(scales)
        scales = torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).to(exponent.dtype))
    values = (finite / scales[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(key.isfinite(), values, 0x7F), scales
