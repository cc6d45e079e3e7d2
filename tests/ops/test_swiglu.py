import pytest
import torch

from glm5_ops import quantize_fp8, reference, swiglu, swiglu_bwd, swiglu_fp8
from glm5_ops.workloads.swiglu import (
    EDGES,
    EDGES_BWD,
    EDGES_FP8,
    SwigluBwdCase,
    SwigluCase,
    SwigluFp8Case,
)
from tests import harness
from tests.harness import CPUS, GPUS, VECTOR_CPUS, over

FORWARD, FP8, BACKWARD = "swiglu", "swiglu_fp8", "swiglu_bwd"
LARGER = (70, 1300)


@over(EDGES)
def test_matches_the_reference(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(EDGES_FP8)
def test_quantised_form_matches_the_reference(case, target):
    harness.check_matches_reference(FP8, case, target)


@over(EDGES_BWD)
def test_gradient_matches_the_reference(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over(EDGES, VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic(FORWARD, case, target)


@over(EDGES_BWD, VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_gradient(case, target):
    harness.check_same_bits_as_generic(BACKWARD, case, target)


@over((*EDGES, *EDGES_BWD), GPUS)
def test_a_gpu_gives_the_bits_of_a_processor(case, target):
    op = BACKWARD if isinstance(case, SwigluBwdCase) else FORWARD
    harness.check_same_bits_on_a_gpu_and_generic(op, case, target)


@over(EDGES_FP8)
def test_quantised_form_has_the_bits_of_two_passes(case, target):
    inputs = case.inputs(target.device)
    power_of_two = inputs.pop("power_of_two")
    two_passes = quantize_fp8(swiglu(**inputs), "1x128", power_of_two, 1e-3)
    harness.check_same_bits(FP8, swiglu_fp8(**inputs, power_of_two=power_of_two, amax_floor=1e-3), two_passes)


@over([kind(*LARGER, dtype) for kind in (SwigluCase, SwigluFp8Case, SwigluBwdCase) for dtype in ("bf16", "f32")])
def test_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    op = {SwigluCase: FORWARD, SwigluFp8Case: FP8, SwigluBwdCase: BACKWARD}[type(case)]
    harness.check_repeats(op, case, target)
    harness.check_thread_count_does_not_matter(op, case, target)
    harness.check_rows_do_not_depend_on_the_batch(op, case, target)


@over([SwigluCase(12, 260, dtype, live=7) for dtype in ("bf16", "f32")])
def test_rows_that_no_expert_owns_are_zeros_and_leak_nothing(case, target):
    inputs = case.inputs(target.device)
    assert inputs["gate_up"][7:].isnan().all()
    out, (values, scales) = swiglu(**inputs), swiglu_fp8(**inputs)
    alone = inputs["gate_up"][:7]
    harness.check_same_bits("live rows", [out[:7]], [swiglu(alone)])
    assert not out[7:].view(torch.int16).any() and not values[7:].view(torch.uint8).any()
    assert (scales[7:].cpu() == torch.tensor(1e-4) / 448).all()
    d_gate_up = swiglu_bwd(torch.full_like(out, float("nan")), **inputs)
    assert not d_gate_up[7:].any()


@over([SwigluCase(2, 128)])
@pytest.mark.parametrize("last", [-5, 0, 9, 2**31 - 1])
def test_a_last_offset_beyond_the_rows_counts_as_their_number(case, target, last):
    gate_up = case.inputs(target.device)["gate_up"]
    offsets = torch.tensor([0, last], dtype=torch.int32, device=target.device)
    expected = swiglu(gate_up) if last > 2 else torch.zeros_like(swiglu(gate_up))
    harness.check_same_bits("offsets", [swiglu(gate_up, None, offsets)], [expected])


@over([SwigluCase(6, 200, dtype, limit=limit) for dtype in ("bf16", "f32") for limit in (0.0, 0.7)])
def test_autograd_gives_the_gradient_of_the_formula(case, target):
    inputs = case.inputs(target.device)
    leaf = inputs.pop("gate_up").requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    d_out = torch.randn(6, 200, generator=torch.Generator().manual_seed(3)).bfloat16().to(target.device)
    swiglu(leaf, **inputs).backward(d_out)
    reference.swiglu(exact, **inputs).backward(d_out.double())
    tolerance = {"rtol": 2**-8, "atol": 1e-3} if case.dtype == "bf16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(leaf.grad.double(), exact.grad, **tolerance)


@over([SwigluCase(40, 64, "f32")], CPUS)  # an emulated GPU calculates with the processor's own instructions
def test_denormal_mode_of_the_caller_changes_nothing(case, target):
    gate_up = case.inputs(target.device)["gate_up"] * 2.0**-65
    expected = swiglu(gate_up)
    assert (expected.float().abs() < 2.0**-126).any() and expected.any()
    torch.set_flush_denormal(True)
    try:
        got = swiglu(gate_up)
    finally:
        torch.set_flush_denormal(False)
    harness.check_same_bits("swiglu with flushed denormals", [got], [expected])


def test_the_limit_is_that_of_models_trained_with_one():
    gate_up = torch.tensor([[9.0, -9.0, 1.0, 1.0, 9.0, -9.0]])
    expected = torch.tensor([[7.0, -9.0, 1.0]])
    expected = torch.nn.functional.silu(expected) * torch.tensor([[1.0, 7.0, -7.0]])
    assert torch.equal(swiglu(gate_up, 7.0), expected.bfloat16())


def test_reference_passes_gradcheck_in_f64():
    gate_up = SwigluCase(3, 5, "f32").inputs()["gate_up"].double().requires_grad_()
    for limit in (None, 0.9):
        assert torch.autograd.gradcheck(lambda x, limit=limit: reference.swiglu(x, limit), [gate_up])


def test_reference_gradient_is_that_of_the_reference():
    for case in (SwigluBwdCase(6, 20, "f32", limit=0.8), SwigluBwdCase(6, 20, "f32", live=4)):
        inputs = case.inputs()
        d_out, leaf = inputs.pop("d_out").double().nan_to_num(), inputs.pop("gate_up").double().requires_grad_()
        (expected,) = torch.autograd.grad(reference.swiglu(leaf, **inputs), leaf, d_out)
        got = reference.swiglu_bwd(d_out, leaf.detach(), **inputs)
        torch.testing.assert_close(got, expected.nan_to_num(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gate_up": torch.zeros(3, 4, dtype=torch.float16)}, "gate_up must be bf16|f32[rows, gate_and_up]"),
        ({"gate_up": torch.zeros(4, 3).t()}, "with strides [1, 3]"),
        ({"gate_up": torch.zeros(3, 5)}, "gate_up must be of an even number of columns"),
        ({"limit": 0.0}, "limit must be None or above 0; got 0.0"),
        ({"limit": float("nan")}, "limit must be None or above 0; got nan"),
        ({"offsets": torch.zeros(3)}, "offsets must be i32[bounds]"),
        ({"offsets": torch.zeros(0, dtype=torch.int32)}, "offsets must be i32[experts + 1]"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(swiglu, **({"gate_up": torch.zeros(3, 4)} | change))
    assert message.startswith("swiglu: ") and sentence in message


def test_misuse_of_the_other_forms_is_answered_with_a_sentence():
    gate_up = torch.zeros(3, 4)
    assert "amax_floor must be between 2^-100 and 448; got 0.0" in harness.message_of(
        swiglu_fp8, gate_up, amax_floor=0.0
    )
    d_out = torch.zeros(3, 4).bfloat16()
    assert "d_out must be bf16[rows, 2]" in harness.message_of(swiglu_bwd, d_out, gate_up)


def test_registration():
    gate_up = torch.randn(5, 12)
    offsets = torch.tensor([0, 4], dtype=torch.int32)
    harness.check_registration(FORWARD, gate_up.clone().requires_grad_(), None, None)
    harness.check_registration(FORWARD, gate_up.bfloat16(), 3.0, offsets)
    harness.check_registration(FP8, gate_up, None, offsets, True, 1e-4)
    harness.check_registration(BACKWARD, torch.randn(5, 6).bfloat16(), gate_up, None, None)


def test_compiles_with_its_gradient():
    def loss(gate_up):
        return (swiglu(gate_up) * 2).float().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 7):
        gate_up = torch.randn(rows, 12, requires_grad=True)
        ours, theirs = (torch.autograd.grad(f(gate_up), gate_up) for f in (compiled, loss))
        harness.check_same_bits("gradients", ours, theirs)
