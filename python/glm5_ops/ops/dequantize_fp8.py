"""dequantize_fp8: values times their scales."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract, ceil_div
from glm5_ops.ops._op import op, stream_of

CONTRACT = Contract(
    "dequantize_fp8",
    values="e4m3[rows, cols]",
    transposed_values="e4m3[cols, rows]",
    row_scales="f32[rows, ceil(cols/128)] any",
    block_scales="f32[ceil(rows/128), ceil(cols/128)] any",
    column_scales="f32[cols, groups] any",
    offsets="i32[bounds]?",
    x="bf16|f16|f32[rows, cols]",
)
GROUPS = {"1x128": 0, "128x128": 1, "128x1": 2}
SCALES = {"1x128": "row_scales", "128x128": "block_scales", "128x1": "column_scales"}


def _outputs(values: Tensor, scales: Tensor, group: str, dtype: torch.dtype, offsets: Tensor | None = None) -> Tensor:
    CONTRACT.require(group in GROUPS, "group", "one of 1x128, 128x128, 128x1", group)
    CONTRACT.require(dtype in CONTRACT.lines["x"].dtypes, "dtype", "bf16, f16 or f32", dtype)
    CONTRACT.require(offsets is None or group == "128x1", "offsets", "None unless group is 128x1", offsets)
    name = "transposed_values" if group == "128x1" else "values"
    lengths = CONTRACT.check(**{name: values, SCALES[group]: scales, "offsets": offsets})
    if group == "128x1":
        rows = lengths["rows"]
        groups = ceil_div(rows, 128) if offsets is None else rows // 128 + offsets.shape[0] - 1
        CONTRACT.require(scales.shape[1] == groups, "scales", f"f32[cols, groups] where groups is {groups}", scales)
    return CONTRACT.empty("x", lengths, like=values, dtype=dtype)


@op(fake=_outputs)
def dequantize_fp8(
    values: Tensor, scales: Tensor, group: str, dtype: torch.dtype, offsets: Tensor | None = None
) -> Tensor:
    """Undo ``quantize_fp8``: ``x = value * scale`` in f32, rounded once to ``dtype``.

    NaN values give NaN. With power-of-two scales and bf16 or wider nothing is lost, and quantising again gives the same
    numbers. Rows outside the experts of ``offsets`` give 0.

    Args:
        values, scales: as ``quantize_fp8`` returns them; block scales may be a checkpoint's ``weight_scale_inv``.
        group: ``1x128``, ``128x128`` or ``128x1``.
        dtype: of the result: bf16, f16 or f32.
        offsets: those that the values were quantised with.

    Returns:
        x, [rows, cols], also for ``128x1``, whose values are stored transposed.
    """
    x = _outputs(values, scales, group, dtype, offsets)
    _native.dequantize_fp8(values, scales, GROUPS[group], offsets, x, stream_of(x))
    return x
