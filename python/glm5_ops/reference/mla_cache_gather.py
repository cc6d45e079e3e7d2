"""out[i] = cache[slot_i]; of bytes: [bf16(e4m3 * scale) | rope]"""

import torch
from torch import Tensor


def mla_cache_gather(cache: Tensor, cache_slots: Tensor, check_indices: bool = False) -> Tensor:
    kept = cache_slots >= 0
    rows = cache[cache_slots[kept] // 64, cache_slots[kept] % 64]
    if cache.dtype == torch.uint8:
        values = rows[:, :512].contiguous().view(torch.float8_e4m3fn).float().unflatten(1, (4, 128))
        scales = rows[:, 512:528].contiguous().view(torch.float32)
        latent = (values * scales[:, :, None]).flatten(1).to(torch.bfloat16)
        rows = torch.cat((latent, rows[:, 528:].contiguous().view(torch.bfloat16)), dim=1)
    out = torch.zeros(len(cache_slots), 576, dtype=torch.bfloat16, device=cache.device)
    out[kept] = rows
    return out
