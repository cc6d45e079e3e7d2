"""quantize_fp8: e4m3 values with a scale for every group of 128 (or 128 x 128) of them."""

from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract, ceil_div
from glm5_ops.ops._op import op, stream_of

CONTRACT = Contract(
    "quantize_fp8",
    x="bf16|f16|f32[rows, cols] strided",
    offsets="i32[bounds]?",
    values="e4m3[rows, cols]",
    row_scales="f32[rows, ceil(cols/128)] columns",
    block_scales="f32[ceil(rows/128), ceil(cols/128)]",
    transposed_values="e4m3[cols, rows]",
    column_scales="f32[cols, groups] columns",
)
# The groups' names are the shapes they cover, as in the papers; the numbers are Fp8Group of core/fp8.h.
GROUPS = {"1x128": 0, "128x128": 1, "128x1": 2}
SMALLEST_FLOOR = 2.0**-100


def _outputs(
    x: Tensor, group: str, power_of_two: bool = False, amax_floor: float = 1e-4, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    lengths = CONTRACT.check(x=x, offsets=offsets)
    CONTRACT.require(group in GROUPS, "group", "one of 1x128, 128x128, 128x1", group)
    CONTRACT.require(SMALLEST_FLOOR <= amax_floor <= 448.0, "amax_floor", "between 2^-100 and 448", amax_floor)
    CONTRACT.require(offsets is None or group == "128x1", "offsets", "None unless group is 128x1", offsets)
    CONTRACT.require(offsets is None or offsets.shape[0] >= 1, "offsets", "i32[experts + 1]", offsets)
    if group == "1x128":
        return CONTRACT.empty("values", lengths, like=x), CONTRACT.empty("row_scales", lengths, like=x)
    if group == "128x128":
        return CONTRACT.empty("values", lengths, like=x), CONTRACT.empty("block_scales", lengths, like=x)
    experts = 1 if offsets is None else offsets.shape[0] - 1
    rows = lengths["rows"]
    lengths["groups"] = ceil_div(rows, 128) if offsets is None else rows // 128 + experts
    return CONTRACT.empty("transposed_values", lengths, like=x), CONTRACT.empty("column_scales", lengths, like=x)


@op(fake=_outputs)
def quantize_fp8(
    x: Tensor, group: str, power_of_two: bool = False, amax_floor: float = 1e-4, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round ``x`` to e4m3 with one scale for each group of its values.

    ``scale = max(amax, amax_floor) / 448``, or the power of two at or above it; ``value = e4m3(x / scale)``, division
    in f32, both roundings to nearest even. ``amax`` is the largest finite magnitude of the group. DeepSeek-V3, arXiv
    2412.19437, section 3.3. On every machine the same bits.

    Values that are not finite become NaN (0x7f) and do not touch the others of their group. Zeros keep their sign. A
    group of zeros gets the scale of the floor. The last groups are ragged: 576 rows are 4.5 blocks.

    Args:
        x: the matrix, bf16, f16 or f32; rows may be strided.
        group: which values share a scale: ``1x128`` of a row (activations), ``128x128`` (weights), ``128x1`` of a
            column (for the weight gradient, whose reduction runs over rows).
        power_of_two: round scales up to powers of two (the values of UE8M0, stored as f32).
        amax_floor: the smallest amax, so that a scale is never 0; lower it for gradients, whose amax is often below
            1e-4.
        offsets: ``i32[experts + 1]``, ascending, only with ``128x1``: groups start anew at each expert. Expert e owns
            the rows ``offsets[e]`` to ``offsets[e+1]``; its first group is ``offsets[e] // 128 + e``.

    Returns:
        values and scales. ``1x128``: e4m3[rows, cols], f32[rows, ceil(cols/128)] column-major. ``128x128``:
        e4m3[rows, cols], f32[ceil(rows/128), ceil(cols/128)]. ``128x1``: both transposed, e4m3[cols, rows] and
        f32[cols, groups] column-major; with offsets there are rows // 128 + experts groups, unused ones have scale 0.
    """
    values, scales = _outputs(x, group, power_of_two, amax_floor, offsets)
    _native.quantize_fp8(x, GROUPS[group], power_of_two, amax_floor, offsets, values, scales, stream_of(x))
    return values, scales
