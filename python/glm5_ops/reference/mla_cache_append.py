"""latent = bf16(weight * T(x / sqrt(mean(x^2) + eps)));  rope: pairs turned;  cache[slot] = [latent | rope]

The sum of 512 squares is written as the op's header orders it, so that the op can be met to the bit.
"""

import torch
from torch import Tensor


def mla_cache_append(
    kv: Tensor,
    norm_weight: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache_slots: Tensor,
    cache: Tensor,
    eps: float,
    power_of_two: bool = False,
    check_indices: bool = False,
) -> None:
    kept = cache_slots >= 0
    page, row = cache_slots[kept] // 64, cache_slots[kept] % 64
    x = kv[kept] if kv.dtype == torch.float64 else kv[kept].float()
    normed = _normalised(x[:, :512], eps).to(kv.dtype).to(x.dtype) * norm_weight.to(x.dtype)
    latent = normed.to(torch.bfloat16)
    rope = _rotated(x[:, 512:], cos_sin[positions[kept].long()].to(x.dtype)).to(torch.bfloat16)
    if cache.dtype == torch.bfloat16:
        cache[page, row] = torch.cat((latent, rope), dim=1)
        return
    values, scales = _quantised(latent.float(), power_of_two)
    cache[page, row] = torch.cat((values, scales.view(torch.uint8), rope.view(torch.uint8)), dim=1)


def _sum(x: Tensor) -> Tensor:
    chains, *others = x.unflatten(1, (8, 64)).unbind(1)
    for other in others:
        chains = chains + other
    while chains.shape[1] > 1:
        low, high = chains.chunk(2, dim=1)
        chains = low + high
    return chains


def _normalised(x: Tensor, eps: float) -> Tensor:
    root = (_sum(x * x) / 512 + eps).double().sqrt().to(x.dtype)  # torch's own in f32 is not always the nearest
    return x * (1 / root)


def _rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    even, odd = x.unflatten(1, (32, 2)).unbind(2)
    cosine, sine = cos_sin.unbind(2)
    return torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=2).flatten(1)


def _quantised(latent: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    groups = latent.unflatten(1, (4, 128))
    finite = torch.where(groups.isfinite(), groups, 0)
    scales = finite.abs().amax(dim=2).clamp(min=1e-4) / 448
    if power_of_two:
        mantissa, exponent = torch.frexp(scales)
        scales = torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).to(exponent.dtype))
    values = (finite / scales[:, :, None]).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(groups.isfinite(), values, 0x7F).flatten(1), scales
