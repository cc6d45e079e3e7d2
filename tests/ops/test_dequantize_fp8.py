import pytest
import torch

from glm5_ops import dequantize_fp8, quantize_fp8, reference
from glm5_ops.workloads._compare import bits
from glm5_ops.workloads.dequantize_fp8 import EDGES, DequantizeCase
from tests import harness
from tests.harness import over


@over(EDGES)
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference("dequantize_fp8", case, target)


@over([DequantizeCase(1, 1)], harness.CPUS)
@pytest.mark.parametrize("group", ["1x128", "128x128", "128x1"])
def test_outputs_too_large_for_caches_match_the_reference(case, target, group):
    harness.check_matches_reference("dequantize_fp8", DequantizeCase(1024, 2112, group), target)


@over([DequantizeCase(1, 1)], harness.CPUS)
@pytest.mark.parametrize("exponent", [-126, -110, -101, -100, 0, 99, 100, 111, 119])
def test_all_256_bytes_at_scales_near_the_ends_of_bf16(case, target, exponent):
    """The products of one group: some overflow, some are subnormal, and with what bf16 rounds between."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 128).to(target.device)
    mantissas = torch.tensor([1, 1 + 2**-23, 1.25, 17 / 16, 2 - 2**-23]) * 2.0**exponent
    for scale in (*mantissas, *-mantissas, torch.tensor(0.0)):
        scales = scale.expand(2, 1).contiguous().to(target.device)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            expected = reference.dequantize_fp8(values, scales, "1x128", dtype)
            harness.check_same_bits(f"scale {scale}", [dequantize_fp8(values, scales, "1x128", dtype)], [expected])


@over([DequantizeCase(700, 900, group) for group in ("1x128", "128x128", "128x1")])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats("dequantize_fp8", case, target)
    harness.check_thread_count_does_not_matter("dequantize_fp8", case, target)


@over([DequantizeCase(2, 128, dtype="f32")])
def test_all_256_bytes(case, target):
    values = torch.arange(256, dtype=torch.uint8, device=target.device).view(torch.float8_e4m3fn).view(2, 128)
    x = dequantize_fp8(values, torch.ones(2, 1, device=target.device), "1x128", torch.float32)
    expected = values.float()
    assert torch.equal(x.isnan(), expected.isnan()) and int(x.isnan().sum()) == 2
    assert torch.equal(bits(x.nan_to_num()), bits(expected.nan_to_num()))


@over([DequantizeCase(2, 128)])
@pytest.mark.parametrize("group", ["1x128", "128x128", "128x1"])
def test_is_within_half_a_step_of_what_was_quantised(case, target, group):
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(1)).to(target.device)
    again = dequantize_fp8(*quantize_fp8(x, group), group, torch.float32)
    # e4m3 has 3 mantissa bits: half a step is 2^-4 of a number, and 2^-10 of the scale below 2^-6 of it
    amax = float(x.abs().max())
    assert bool(((again - x).abs() <= x.abs() * 2**-4 + amax / 448 * 2**-10 * 1.001).all())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"values": torch.zeros(4, 256)}, "values must be e4m3[rows, cols], row-major; got torch.float32[4, 256]"),
        ({"scales": torch.zeros(4, 3)}, "row_scales must be f32[rows, ceil(cols/128)], where rows is 4 and"),
        ({"scales": torch.zeros(4, 2, dtype=torch.float64)}, "got torch.float64[4, 2]"),
        ({"dtype": torch.int8}, "dtype must be bf16, f16 or f32; got torch.int8"),
        ({"group": "x"}, "group must be one of"),
        ({"group": "128x1", "scales": torch.zeros(4, 5)}, "where groups is 2"),
        ({"offsets": torch.zeros(2, dtype=torch.int32)}, "offsets must be None unless group is 128x1"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    right = {
        "values": torch.zeros(4, 256).to(torch.float8_e4m3fn),
        "scales": torch.ones(4, 2),
        "group": "1x128",
        "dtype": torch.float32,
    }
    message = harness.message_of(dequantize_fp8, **(right | change))
    assert message.startswith("dequantize_fp8: ") and sentence in message


def test_registration():
    values, scales = quantize_fp8(torch.randn(150, 130), "1x128")
    harness.check_registration("dequantize_fp8", values, scales, "1x128", torch.bfloat16, None)
