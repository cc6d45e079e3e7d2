"""out[t] = sum_k weights[t, k] * rows[slots[t, k]] + shared[t]"""

import torch
from torch import Tensor


def moe_combine(rows: Tensor, slots: Tensor, weights: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
    wide, weights, present = _wide(rows, slots, weights)
    chosen = wide[torch.where(present, slots, len(rows)).long()]  # [tokens, topk, hidden]
    out = (chosen * weights[..., None]).sum(1)
    out = out if shared is None else out + shared.to(wide.dtype)
    return out if rows.dtype == torch.float64 else out.bfloat16()


def moe_combine_bwd(
    d_out: Tensor, rows: Tensor, slots: Tensor, weights: Tensor | None = None, check_indices: bool = False
) -> tuple[Tensor, Tensor]:
    wide, given, present = _wide(rows, slots, weights)
    d_out = d_out.to(wide.dtype)
    places = torch.where(present, slots, len(rows)).long()
    d_rows = torch.zeros_like(wide).index_put((places,), given[..., None] * d_out[:, None])[:-1]
    products = (wide[places] * d_out[:, None]).sum(2)
    d_weights = torch.where(present, products, 0.0)
    return d_rows.to(rows.dtype), d_weights if weights is not None else d_weights[:0]


def _wide(rows: Tensor, slots: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Rows with one of zeros behind them, for what is absent; weights that are 0 there; what is present."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    present = (slots >= 0) & (slots < len(rows))
    weights = torch.ones(slots.shape, device=rows.device) if weights is None else weights
    weights = torch.where(present, weights, 0.0).to(dtype)
    return torch.cat((rows.to(dtype), rows.new_zeros(1, rows.shape[1]).to(dtype))), weights, present
