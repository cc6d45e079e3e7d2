"""x = value * scale"""

import torch
from torch import Tensor


def dequantize_fp8(
    values: Tensor, scales: Tensor, group: str, dtype: torch.dtype, offsets: Tensor | None = None
) -> Tensor:
    wide = torch.float64 if scales.dtype == torch.float64 else torch.float32
    of_column = torch.arange(values.shape[1], device=values.device) // 128
    if group == "128x128":
        of_row = torch.arange(values.shape[0], device=values.device) // 128
        return (values.to(wide) * scales[of_row][:, of_column]).to(dtype)
    if group == "1x128":
        return (values.to(wide) * scales[:, of_column]).to(dtype)
    if offsets is not None:
        of_column, owned = _groups_of_experts(values.shape[1], offsets)
        return torch.where(owned, values.to(wide) * scales[:, of_column], 0).t().to(dtype).contiguous()
    return (values.to(wide) * scales[:, of_column]).t().to(dtype).contiguous()


def _groups_of_experts(rows: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """The group of every row, and whether any expert owns it."""
    row = torch.arange(rows, device=offsets.device)
    expert = torch.searchsorted(offsets.long(), row, right=True) - 1
    owned = (expert >= 0) & (expert < offsets.shape[0] - 1)
    expert = expert.clamp(0, max(offsets.shape[0] - 2, 0))
    begin = offsets[expert].long()
    return torch.where(owned, begin // 128 + expert + (row - begin) // 128, 0), owned
