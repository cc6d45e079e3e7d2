import sys

import pytest
import torch

import glm5_ops
import glm5_ops.ops.gemm
from glm5_ops import gemm, gemm_into, reference
from glm5_ops.ops._op import stream_of
from glm5_ops.workloads.gemm import EDGES, EDGES_INTO, GemmCase
from tests import harness
from tests.harness import over

gemm_module = sys.modules["glm5_ops.ops.gemm"]
LARGE = [GemmCase(300, 330, 700, dtype, "f32") for dtype in ("bf16", "f32")]
TALL = GemmCase(1050, 40, 48)  # more rows than AMX packs at once


@over((*EDGES, *LARGE))
def test_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("gemm", case, target)


@over(EDGES_INTO)
def test_into_a_given_output_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("gemm_into", case, target)


@over((*EDGES, *LARGE, TALL), harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic("gemm", case, target)


@over(EDGES_INTO, harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits_into_a_given_output(case, target):
    harness.check_same_bits_as_generic("gemm_into", case, target)


@over([GemmCase(6, 20, 200, fill="normal")], harness.VECTOR_CPUS)
def test_subnormal_operands_count_as_zero_on_every_instruction_set(case, target):
    inputs = case.inputs()
    for scale in (2.0**-128, 2.0**-70):  # operands, products and sums in the subnormal range
        small = {n: v * scale if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        small["out_dtype"] = torch.float32
        got = gemm(**small)
        with harness.Target("cpu-generic", isa="generic").active():
            if not target.interpreted:
                assert torch.equal(got, gemm(**small))
        if scale == 2.0**-128:
            assert not got.any()


@over([GemmCase(37, 200, 300), *LARGE])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats("gemm", case, target)
    harness.check_thread_count_does_not_matter("gemm", case, target)


@over([GemmCase(70, 100, 300, dtype, "f32", batch) for dtype in ("bf16", "f32") for batch in (0, 2)] + LARGE)
def test_a_row_has_the_same_bits_in_any_batch(case, target):
    harness.check_rows_do_not_depend_on_the_batch("gemm", case, target)


@over(
    [GemmCase(m, n, 392, batch=b, transposed=t) for m, n, b, t in ((5, 200, 0, ""), (136, 264, 2, "ab"))], harness.GPUS
)
def test_every_schedule_of_the_gpu_gives_the_same_bits(case, target):
    inputs = case.inputs(target.device)
    out = gemm(**inputs)
    a, b, expected = (t if case.batch else t[None] for t in (inputs["a"], inputs["b"], out))
    ran = 0
    for variant in range(target.native.gemm_variants):
        single = torch.zeros_like(expected)
        try:
            gemm_module._native.gemm_variant(a, b, single, False, variant, stream_of(out))
        except glm5_ops.Error as error:
            assert "cannot run this problem" in str(error)
            continue
        harness.check_same_bits(f"variant {variant}", [single], [expected])
        ran += 1
    assert ran >= (2 if "a" in case.transposed else 7)


@over([GemmCase(40, 50, 60, dtype, "f32") for dtype in ("bf16", "f32")])
def test_layout_does_not_matter(case, target):
    inputs = case.inputs(target.device)
    expected = gemm(**inputs)
    a, b = inputs["a"], inputs["b"]
    for a_view in (a, a.t().contiguous().t()):
        for b_view in (b, b.t().contiguous().t()):
            harness.check_same_bits("gemm of a view", [gemm(a_view, b_view, torch.float32)], [expected])
    batched = gemm(torch.stack([a, a]), b.expand(2, -1, -1), torch.float32)
    harness.check_same_bits("gemm in a batch", [batched[1]], [expected])


@over([GemmCase(13, 29, 50, "f32", "f32", batch) for batch in (0, 2)])
def test_gradient_is_that_of_the_reference(case, target):
    inputs = case.inputs(target.device)
    dtype = inputs.pop("out_dtype")
    grads = []
    for function in (gemm, reference.gemm):
        operands = [t.detach().clone().requires_grad_() for t in inputs.values()]
        out = function(*operands, dtype)
        grads.append(torch.autograd.grad(out, operands, torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)))
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2**-20, atol=2**-18)  # sums of up to 50 f32 products


def test_gradient_takes_an_expanded_upstream_gradient():
    a, b = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    gemm(a, b, torch.float32).sum().backward()
    torch.testing.assert_close(a.grad, b.detach().sum(0).expand(4, 6))


def test_reference_passes_gradcheck_in_f64():
    a, b = (torch.randn(r, 7, dtype=torch.float64, requires_grad=True) for r in (3, 4))
    assert torch.autograd.gradcheck(lambda a, b: reference.gemm(a, b, torch.float64), (a, b))


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (
            torch.zeros(3, 4, dtype=torch.float64),
            torch.zeros(5, 4),
            "a must be bf16|f32[m, k], with unit stride along one",
        ),
        (torch.zeros(3, 4), torch.zeros(5, 6), "b must be bf16|f32[n, k]"),
        (torch.zeros(3, 4), torch.zeros(5, 4, dtype=torch.bfloat16), "b must be torch.float32 as a is"),
        (torch.zeros(6, 8)[::2, ::2], torch.zeros(5, 4), "got torch.float32[3, 4] with strides [16, 2] on cpu"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 5, 4), "batched_b must be bf16|f32[batch, n, k]"),
        (torch.zeros(2, 2, 3, 4), torch.zeros(5, 4), "batched_a must be"),
    ],
)
def test_misuse_is_answered_with_a_sentence(a, b, sentence):
    message = harness.message_of(gemm, a, b, torch.float32)
    assert message.startswith("gemm: ") and sentence in message


def test_a_given_output_takes_no_gradient():
    a = torch.zeros(3, 4, requires_grad=True)
    assert "gemm: out must be computed without gradient" in harness.message_of(
        gemm_into, a, torch.zeros(5, 4), torch.zeros(3, 5)
    )


def test_registration():
    a, b = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    harness.check_registration("gemm", a, b, torch.float32)
    harness.check_registration("gemm_into", a.detach(), b.detach(), torch.zeros(4, 5), True)


def test_compiles_with_its_gradient_and_exports():
    class Product(torch.nn.Module):
        def forward(self, a, b):
            return gemm(a, b, torch.float32).square().sum()

    a, b = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    expected = torch.autograd.grad(Product()(a, b), (a, b))
    compiled = torch.compile(Product(), fullgraph=True, dynamic=True, backend="aot_eager")
    for ours, theirs in zip(torch.autograd.grad(compiled(a, b), (a, b)), expected, strict=True):
        assert torch.equal(ours, theirs)
    exported = torch.export.export(Product(), (a.detach(), b.detach()))
    assert torch.equal(exported.module()(a.detach(), b.detach()), Product()(a, b))
