import pytest
import torch

import glm5_ops
from glm5_ops import quantize_fp8, reference
from glm5_ops.workloads._compare import bits
from glm5_ops.workloads.quantize_fp8 import EDGES, QuantizeCase
from tests import harness
from tests.harness import over

GROUPS = ("1x128", "128x128", "128x1")
THREADED = [QuantizeCase(700, 900, group) for group in GROUPS]


@over(EDGES)
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference("quantize_fp8", case, target)


@over([QuantizeCase(1, 1)], harness.CPUS)
@pytest.mark.parametrize("group", GROUPS)
def test_outputs_too_large_for_caches_match_the_reference(case, target, group):
    harness.check_matches_reference("quantize_fp8", QuantizeCase(2048, 2112, group), target)


@over(THREADED)
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats("quantize_fp8", case, target)
    harness.check_thread_count_does_not_matter("quantize_fp8", case, target)


@over([QuantizeCase(1, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_a_type_is_rounded_as_torch_rounds_it(case, target, dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).view(512, 128).to(target.device)
    for power_of_two in (False, True):
        got = quantize_fp8(every, "1x128", power_of_two, 1e-4)
        harness.check_same_bits(f"all of {dtype}", got, reference.quantize_fp8(every, "1x128", power_of_two, 1e-4))


@over([QuantizeCase(1, 1)], harness.CPUS)
@pytest.mark.parametrize("exponent", [0, 127, -80, -81, -82])
def test_every_bf16_is_right_beside_every_largest_magnitude_of_a_group(case, target, exponent):
    """What 1x128 makes of bf16 depends on the two mantissas and the distance of their exponents: these are all of them.

    Neighbours share a group, so that most groups hold normal numbers of e4m3 alone. The exponents around -81 are where
    scales get too small for exact remainders."""
    largest = (2**7 + torch.arange(2**7)) * 2.0 ** (exponent - 7)
    top = largest.bfloat16().view(torch.int16).int()[:, None, None]
    below = torch.arange(127 * 26).view(1, 26, 127)  # 25 binades: the codes of the last ones are 0
    patterns = torch.cat([top.expand(-1, 26, 1), top - below], dim=2).clamp(min=0)
    signs = (torch.arange(128) % 3 == 1).int() * 2**15
    x = (patterns + signs).to(torch.uint16).view(torch.bfloat16).view(-1, 128).to(target.device)
    for power_of_two in (False, True):
        expected = reference.quantize_fp8(x, "1x128", power_of_two, 2.0**-100)
        got = quantize_fp8(x, "1x128", power_of_two, 2.0**-100)
        harness.check_same_bits(f"largest magnitudes at 2^{exponent}", got, expected)


@over([QuantizeCase(1, 1)], harness.CPUS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quotients_beside_midpoints_are_rounded_right(case, target, dtype):
    """Scales (set by the floor) and numbers whose quotient is a midpoint of e4m3, or one of its neighbours in f32."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    midpoints = (codes[1:] + codes[:-1]) / 2
    for _ in range(4 if target.interpreted else 200):
        number = torch.rand((), generator=generator).add(1).to(dtype).float() * 2.0**-12
        midpoint = midpoints[torch.randint(0, 126, (), generator=generator)]
        ulps = torch.randint(-2, 3, (), generator=generator, dtype=torch.int32)
        floor = float((448 * number / midpoint).view(torch.int32).add(ulps).view(torch.float32))
        scale = torch.tensor(floor).float() / 448
        numbers = (midpoints * scale).to(dtype)
        size = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
        near = torch.stack([numbers.view(size) + i for i in range(-2, 3)]).view(dtype).flatten()
        x = torch.cat([near, -near, number.to(dtype)[None]]).view(1, -1).to(target.device)
        for power_of_two in (False, True):
            expected = reference.quantize_fp8(x, "1x128", power_of_two, floor)
            harness.check_same_bits(f"floor {floor}", quantize_fp8(x, "1x128", power_of_two, floor), expected)


@over([QuantizeCase(1, 1)])
def test_denormal_mode_of_the_caller_changes_nothing(case, target):
    x = QuantizeCase(20, 256, dtype="f32", fill="tiny").inputs(target.device)["x"]
    expected = quantize_fp8(x, "1x128", False, 2.0**-100)
    torch.set_flush_denormal(True)
    try:
        got = quantize_fp8(x, "1x128", False, 2.0**-100)
    finally:
        torch.set_flush_denormal(False)
    harness.check_same_bits("quantize_fp8 with flushed denormals", got, expected)


@over([QuantizeCase(300, 260, group, power_of_two=True) for group in GROUPS])
def test_power_of_two_scales_lose_nothing_the_second_time(case, target):
    inputs = case.inputs(target.device)
    values, scales = quantize_fp8(**inputs)
    once = glm5_ops.dequantize_fp8(values, scales, case.group, torch.float32)
    again = quantize_fp8(once, case.group, True, 1e-4)
    twice = glm5_ops.dequantize_fp8(*again, case.group, torch.float32)
    harness.check_same_bits("dequantised twice", [twice], [once])
    log2 = scales.log2()
    assert torch.equal(log2, log2.round())


@over([QuantizeCase(4, 256)])
def test_numbers_that_are_not_finite_become_nan_and_harm_nothing_else(case, target):
    x = case.inputs(target.device)["x"]
    clean, scales = quantize_fp8(x, "1x128")
    row = x[1].clone()
    row[:3] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    x[1] = row
    peak = int(x[1, 3:128].abs().argmax()) + 3
    values, new_scales = quantize_fp8(x, "1x128")
    assert bits(values)[1, :3].tolist() == [0x7F] * 3
    assert new_scales[1, 0] == x[1, peak].float().abs() / 448
    assert torch.equal(bits(values)[1, 128:], bits(clean)[1, 128:])
    assert torch.equal(bits(values)[2:], bits(clean)[2:])
    assert torch.equal(scales[2:], new_scales[2:])


@over([QuantizeCase(4, 256)])
def test_a_group_of_zeros_has_the_scale_of_the_floor_and_keeps_signs(case, target):
    x = torch.zeros(2, 128, dtype=torch.bfloat16, device=target.device)
    x[0] = -0.0
    values, scales = quantize_fp8(x, "1x128", False, 0.5)
    assert bits(values)[0].unique().tolist() == [0x80]
    assert bits(values)[1].unique().tolist() == [0]
    assert torch.equal(scales.cpu(), torch.full((2, 1), 0.5) / 448)


def test_scales_of_rows_are_column_major_with_padded_columns():
    _, scales = quantize_fp8(torch.randn(5, 300), "1x128")
    assert scales.shape == (5, 3) and scales.stride() == (1, 8)
    values, scales = quantize_fp8(torch.randn(300, 5), "128x1")
    assert values.shape == (5, 300) and scales.shape == (5, 3) and scales.stride() == (1, 8)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(3, 4, dtype=torch.float64)}, "x must be bf16|f16|f32[rows, cols], with unit stride"),
        ({"x": torch.zeros(3)}, "x must be bf16|f16|f32[rows, cols]"),
        ({"x": torch.zeros(4, 3).t()}, "got torch.float32[3, 4] with strides [1, 3] on cpu"),
        ({"x": torch.zeros(1, 1).expand(2**31, 1)}, "no dimension above 2147483647"),
        ({"x": torch.zeros(3, 4, requires_grad=True)}, "x requires grad, but quantize_fp8 has no gradient"),
        ({"group": "2x64"}, "group must be one of 1x128, 128x128, 128x1; got '2x64'"),
        ({"amax_floor": 0.0}, "amax_floor must be between 2^-100 and 448; got 0.0"),
        ({"amax_floor": float("nan")}, "amax_floor must be between 2^-100 and 448; got nan"),
        ({"offsets": torch.tensor([0, 3], dtype=torch.int32)}, "offsets must be None unless group is 128x1"),
        ({"group": "128x1", "offsets": torch.tensor([0, 3])}, "offsets must be i32[bounds]"),
        ({"group": "128x1", "offsets": torch.tensor([0, 9], dtype=torch.int32)}, "offsets"),
        ({"group": "128x1", "offsets": torch.tensor([2, 1], dtype=torch.int32)}, "offsets"),
        ({"x": torch.zeros(3, 4, device="meta"), "group": "128x1", "offsets": torch.tensor([0, 3], dtype=torch.int32)},
         "all tensors must be on one device"),
    ],
)  # fmt: skip
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(quantize_fp8, **({"x": torch.zeros(3, 4), "group": "1x128"} | change))
    assert message.startswith("quantize_fp8: ") and sentence in message


@pytest.mark.parametrize("group", GROUPS)
def test_registration(group):
    x = torch.randn(150, 130)
    harness.check_registration("quantize_fp8", x, group, False, 1e-4, None)
