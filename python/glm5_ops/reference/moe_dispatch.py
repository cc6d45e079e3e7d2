"""rows[slots[t, k]] = x[t], where slots number (t, k) in order of expert, then of t, then of k"""

import torch
from torch import Tensor


def moe_sort(experts: Tensor, num_experts: int, first_expert: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    local = experts.flatten().long() - first_expert
    local = torch.where((local >= 0) & (local < num_experts) & (experts.flatten() >= 0), local, num_experts)
    order = local.sort(stable=True).indices
    counts = torch.bincount(local, minlength=num_experts + 1)
    offsets = torch.cat((counts.new_zeros(1), counts[:num_experts].cumsum(0)))
    numbers = torch.arange(len(local), device=experts.device)
    is_used = numbers < offsets[-1]
    slots = torch.empty_like(local)
    slots[order] = torch.where(is_used, numbers, -1)
    row_tokens = torch.where(is_used, order // max(1, experts.shape[1]), -1)
    return slots.view(experts.shape).int(), offsets.int(), row_tokens.int()


def moe_dispatch(
    x: Tensor, experts: Tensor, num_experts: int, first_expert: int = 0, scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    slots, offsets, row_tokens = moe_sort(experts, num_experts, first_expert)
    used = int(offsets[-1])
    tokens = row_tokens[:used].long()
    is_fp8 = x.dtype == torch.float8_e4m3fn
    given = x.view(torch.uint8) if is_fp8 else x
    rows = torch.cat((given[tokens], given.new_zeros(len(row_tokens) - used, x.shape[1])))
    rows = rows.view(x.dtype) if is_fp8 else rows
    if scales is None:
        return rows, torch.empty(0, 0, dtype=torch.float32, device=x.device), slots, offsets, row_tokens
    row_scales = torch.cat((scales[tokens], scales.new_zeros(len(row_tokens) - used, scales.shape[1])))
    return rows, row_scales.t().contiguous().t(), slots, offsets, row_tokens
