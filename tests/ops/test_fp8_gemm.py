import sys

import pytest
import torch

import glm5_ops
import glm5_ops.ops.fp8_gemm
from glm5_ops import fp8_gemm, fp8_gemm_into, quantize_fp8, reference
from glm5_ops.ops._op import stream_of
from glm5_ops.workloads.fp8_gemm import EDGES, EDGES_INTO, Fp8GemmCase
from tests import harness
from tests.harness import over

fp8_gemm_module = sys.modules["glm5_ops.ops.fp8_gemm"]
LARGE = [Fp8GemmCase(300, 330, 720, b_scales) for b_scales in ("128x128", "1x128")]
TALL = Fp8GemmCase(1050, 40, 48)  # more rows than AMX packs at once


@over((*EDGES, *LARGE))
def test_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("fp8_gemm", case, target)


@over(EDGES_INTO)
def test_into_a_given_output_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("fp8_gemm_into", case, target)


@over((*EDGES, *LARGE, TALL), harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic("fp8_gemm", case, target)


@over(EDGES_INTO, harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits_into_a_given_output(case, target):
    harness.check_same_bits_as_generic("fp8_gemm_into", case, target)


@over([Fp8GemmCase(37, 200, 304), *LARGE])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats("fp8_gemm", case, target)
    harness.check_thread_count_does_not_matter("fp8_gemm", case, target)


@over([Fp8GemmCase(70, 100, 304, b_scales) for b_scales in ("128x128", "1x128")] + LARGE)
def test_a_row_has_the_same_bits_in_any_batch(case, target):
    harness.check_rows_do_not_depend_on_the_batch("fp8_gemm", case, target)


@over([Fp8GemmCase(m, n, 400, b_scales) for m, n in ((5, 200), (140, 260)) for b_scales in ("128x128", "1x128")],
      harness.GPUS)  # fmt: skip
def test_every_schedule_of_the_gpu_gives_the_same_bits(case, target):
    inputs = case.inputs(target.device)
    out = fp8_gemm(**inputs)
    per_row = inputs["b_scales"].shape[0] == case.n
    operands = [inputs[name] for name in ("a", "a_scales", "b", "b_scales")]
    ran = 0
    for variant in range(target.native.fp8_gemm_variants):
        single = torch.zeros_like(out)
        try:
            fp8_gemm_module._native.fp8_gemm_variant(*operands, per_row, single, False, variant, stream_of(out))
        except glm5_ops.Error as error:
            assert "cannot run this problem" in str(error)
            continue
        harness.check_same_bits(f"variant {variant}", [single], [out])
        ran += 1
    assert ran >= (3 if per_row else 9)


@over([Fp8GemmCase(1, 1, 16)])
def test_writes_only_its_output(case, target):
    inputs = Fp8GemmCase(9, 70, 144).inputs(target.device)
    dtype = inputs.pop("out_dtype")
    guarded = torch.full((11, 96), 7.0, dtype=dtype, device=target.device)
    fp8_gemm_into(**inputs, out=guarded[1:10, 8:78])
    assert torch.equal(guarded[1:10, 8:78], fp8_gemm(**inputs, out_dtype=dtype))
    guarded[1:10, 8:78] = 7.0
    assert bool((guarded == 7.0).all())


@over([Fp8GemmCase(1, 1, 16)])
def test_is_the_product_of_what_was_quantised(case, target):
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(rows, 256, generator=generator).to(target.device) for rows in (40, 150))
    a, a_scales = quantize_fp8(x, "1x128")
    b, b_scales = quantize_fp8(w, "128x128")
    out = fp8_gemm(a, a_scales, b, b_scales, torch.float32)
    exact = x.double() @ w.double().t()
    # two operands with 2^-4 relative rounding at most, errors of 256 products averaging out
    assert float((out - exact).norm() / exact.norm()) < 2**-4


def test_reference_passes_gradcheck_in_f64():
    inputs = Fp8GemmCase(3, 5, 40).inputs()
    scales = [inputs[n].double().requires_grad_() for n in ("a_scales", "b_scales")]
    assert torch.autograd.gradcheck(
        lambda sa, sb: reference.fp8_gemm(inputs["a"], sa, inputs["b"], sb, torch.float64), scales
    )


def _right() -> dict:
    return Fp8GemmCase(4, 130, 256).inputs()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"a": torch.zeros(4, 256)},
            "a must be e4m3[m, k], with unit stride along the last dimension; got torch.float32",
        ),
        ({"a": torch.zeros(256, 4).to(torch.float8_e4m3fn).t()}, "with strides [1, 4]"),
        ({"b": torch.zeros(130, 128).to(torch.float8_e4m3fn)}, "b must be e4m3[n, k]"),
        ({"a_scales": torch.zeros(4, 2)}, "a_scales must be f32[m, ceil(k/128)], column-major"),
        ({"a_scales": torch.zeros(3, 4).t()}, "a_scales must be f32[m, ceil(k/128)]"),
        ({"b_scales": torch.zeros(3, 2)}, "where ceil(n/128) is 2 and ceil(k/128) is 2; got torch.float32[3, 2]"),
        ({"b_scales": torch.zeros(130, 2)}, "b_row_scales must be f32[n, ceil(k/128)], column-major"),
        ({"out_dtype": torch.float16}, "out_dtype must be bf16 or f32; got torch.float16"),
        ({"b": torch.zeros(130, 256, device="meta").to(torch.float8_e4m3fn)}, "all tensors must be on one device"),
        ({"b_scales": torch.zeros(2, 2, requires_grad=True)}, "requires grad, but fp8_gemm has no gradient"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(fp8_gemm, **(_right() | change))
    assert message.startswith("fp8_gemm: ") and sentence in message


@over([Fp8GemmCase(8, 130, 304)], harness.GPUS)
def test_limits_of_the_gpu_kernels_are_answered_with_a_sentence(case, target):
    ragged = Fp8GemmCase(8, 130, 300).inputs(target.device)
    message = harness.message_of(fp8_gemm, **ragged)
    assert "fp8_gemm: the stride of a must be a positive multiple of 16 elements on CUDA, got 300" in message
    inputs = case.inputs(target.device)
    inputs |= {"a": inputs["a"][1:], "a_scales": inputs["a_scales"][1:]}
    message = harness.message_of(fp8_gemm, **inputs)
    assert "fp8_gemm: a_scales must start at a multiple of 16 bytes on CUDA" in message


def test_misuse_of_a_given_output_is_answered_with_a_sentence():
    right = _right()
    right.pop("out_dtype")
    for out in (torch.zeros(4, 131), torch.zeros(130, 4).t(), torch.zeros(4, 130, dtype=torch.float16)):
        message = harness.message_of(fp8_gemm_into, **right, out=out)
        assert message.startswith("fp8_gemm: out must be bf16|f32[m, n]")


def test_registration():
    inputs = Fp8GemmCase(4, 130, 256).inputs()
    harness.check_registration("fp8_gemm", *inputs.values())
    inputs.pop("out_dtype")
    harness.check_registration("fp8_gemm_into", *inputs.values(), torch.zeros(4, 130), True)


def test_compiles_and_exports_without_a_break():
    class Product(torch.nn.Module):
        def forward(self, a, a_scales, b, b_scales):
            return fp8_gemm(a, a_scales, b, b_scales, torch.float32) + 1

    inputs = list(Fp8GemmCase(4, 130, 256).inputs().values())[:4]
    expected = Product()(*inputs)
    compiled = torch.compile(Product(), fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), expected)
    more = list(Fp8GemmCase(9, 70, 400).inputs().values())[:4]
    assert torch.equal(compiled(*more), Product()(*more))
    assert torch.equal(torch.export.export(Product(), tuple(inputs)).module()(*inputs), expected)
