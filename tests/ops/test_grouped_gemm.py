import itertools

import pytest
import torch

import glm5_ops
from glm5_ops import (
    fp8_gemm,
    gemm,
    grouped_gemm,
    grouped_gemm_into,
    grouped_gemm_masked,
    grouped_gemm_wgrad,
    grouped_gemm_wgrad_into,
    quantize_fp8,
    reference,
)
from glm5_ops.workloads.grouped_gemm import (
    EDGES,
    EDGES_INTO,
    EDGES_MASKED,
    EDGES_W8A16,
    EDGES_WGRAD,
    EDGES_WGRAD_FP8,
    EDGES_WGRAD_INTO,
    GroupedGemmCase,
    GroupedGemmMaskedCase,
    GroupedWgradCase,
)
from tests import harness
from tests.harness import over

LARGE = [GroupedGemmCase(3, 620, 330, 720, kind) for kind in ("bf16", "fp8")]
TALL = [GroupedGemmCase(2, 2100, 40, 48, kind, spread="one") for kind in ("bf16", "fp8")]  # more than AMX packs at once
SEVERAL = [
    GroupedGemmCase(6, 150, 136, 400, kind, "f32", spread, tokens=tokens)
    for kind in ("bf16", "fp8")
    for spread, tokens in (("inside", 0), ("empty", 0), ("inside", 50))
]
MASKED = [GroupedGemmMaskedCase(5, 40, 136, 400, kind, "f32") for kind in ("bf16", "fp8")]
WGRAD = [GroupedWgradCase(5, 304, 136, 72, "bf16", "f32", "inside")]
WGRAD_FP8 = [GroupedWgradCase(5, 304, 136, 72, "fp8", "f32", "inside")]
ALL = (
    ("grouped_gemm", EDGES),
    ("grouped_gemm_into", EDGES_INTO),
    ("grouped_gemm_masked", EDGES_MASKED),
    ("grouped_gemm_wgrad", EDGES_WGRAD),
    ("grouped_gemm_wgrad_into", EDGES_WGRAD_INTO),
)


def over_ops(ops, targets=tuple(harness.TARGETS)):
    pairs = [
        pytest.param(op, c, t, id=f"{t}-{op}-{c}") for t in targets for op, cases in ops for c in cases if t.takes(c)
    ]
    return pytest.mark.parametrize(("op", "case", "target"), pairs)


@over_ops((*ALL, ("grouped_gemm", LARGE)))
def test_is_as_close_as_torch_is(op, case, target):
    harness.check_matches_reference(op, case, target)


@over_ops((("grouped_gemm", EDGES_W8A16), ("grouped_gemm_wgrad", EDGES_WGRAD_FP8)), harness.CPUS)
def test_what_only_the_cpu_has_is_as_close_as_torch_is(op, case, target):
    harness.check_matches_reference(op, case, target)


@over([GroupedWgradCase(2, 16, 8, 16, "fp8")], harness.GPUS)
def test_what_only_the_cpu_has_is_refused_elsewhere(case, target):
    message = harness.message_of(grouped_gemm_wgrad, **case.inputs(target.device))
    assert "grouped_gemm_wgrad: e4m3 operands run on the CPU alone" in message
    message = harness.message_of(grouped_gemm, **GroupedGemmCase(2, 5, 8, 16, "w8a16").inputs(target.device))
    assert "grouped_gemm: bf16 rows with e4m3 weights run on the CPU alone" in message


ON_CPUS = (*ALL, ("grouped_gemm", (*LARGE, *TALL, *EDGES_W8A16)), ("grouped_gemm_wgrad", EDGES_WGRAD_FP8))


@over_ops(ON_CPUS, harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(op, case, target):
    harness.check_same_bits_as_generic(op, case, target)


def dense(inputs, begin, end, e, out_dtype):
    """One expert's rows by gemm or fp8_gemm."""
    rows, w = inputs["rows"], inputs["w"][e]
    chosen = torch.arange(begin, end, device=rows.device)
    if "row_tokens" in inputs:
        chosen = inputs["row_tokens"][begin:end].long()
    own = rows.view(torch.uint8).view(len(rows), -1)[chosen].view(rows.dtype)
    if "row_scales" not in inputs:
        return gemm(own, w, out_dtype)
    scales = inputs["row_scales"].t().contiguous()[:, chosen]
    columns = torch.zeros(len(scales), -(-len(chosen) // 4) * 4, device=rows.device)
    columns[:, : len(chosen)] = scales
    return fp8_gemm(own, columns.t()[: len(chosen)], w, inputs["w_scales"][e], out_dtype)


@over([*SEVERAL, *LARGE])
def test_an_expert_has_the_bits_of_a_plain_product(case, target):
    inputs = case.inputs(target.device)
    out, bounds = grouped_gemm(**inputs), inputs["offsets"].tolist()
    for e, (begin, end) in enumerate(itertools.pairwise(bounds)):
        expected = dense(inputs, begin, end, e, inputs["out_dtype"])
        harness.check_same_bits(f"expert {e}", [out[begin:end]], [expected])
    assert not out[: bounds[0]].any() and not out[bounds[-1] :].any()


@over(MASKED)
def test_a_masked_expert_has_the_bits_of_a_plain_product(case, target):
    inputs = case.inputs(target.device)
    out, flat = grouped_gemm_masked(**inputs), inputs | {"rows": inputs["rows"].flatten(0, 1)}
    for e, count in enumerate(inputs["counts"].tolist()):
        begin = e * case.max_rows
        expected = dense(flat, begin, begin + count, e, inputs["out_dtype"])
        harness.check_same_bits(f"expert {e}", [out[e, :count]], [expected])
        assert not out[e, count:].any()


def over_wgrad():
    pairs = [(c, t) for t in harness.TARGETS for c in (WGRAD if t in harness.GPUS else WGRAD + WGRAD_FP8) if t.takes(c)]
    return pytest.mark.parametrize(("case", "target"), [pytest.param(c, t, id=f"{t}-{c}") for c, t in pairs])


@over_wgrad()
def test_a_weight_gradient_has_the_bits_of_a_plain_product(case, target):
    inputs = case.inputs(target.device)
    out, bounds = grouped_gemm_wgrad(**inputs), inputs["offsets"].tolist()
    for e, (begin, end) in enumerate(itertools.pairwise(bounds)):
        a, b = (inputs[name][:, begin:end] for name in "ab")
        if case.kind == "fp8":
            first, groups = begin // 128 + e, -(-(end - begin) // 128)
            scales = [inputs[f"{name}_scales"][:, first : first + groups] for name in "ab"]
            if groups == 0:
                expected = torch.zeros_like(out[e])
            else:
                # copies, for rows that start at multiples of 16 bytes
                padded = [torch.nn.functional.pad(x.view(torch.uint8), (0, -x.shape[1] % 16)) for x in (a, b)]
                a, b = (x.view(torch.float8_e4m3fn) for x in padded)
                expected = fp8_gemm(a, scales[0], b, scales[1], torch.float32)
        else:
            expected = gemm(a, b, torch.float32)
        harness.check_same_bits(f"expert {e}", [out[e]], [expected])


@over([*SEVERAL, *MASKED, *WGRAD])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    op = {GroupedGemmCase: "grouped_gemm", GroupedGemmMaskedCase: "grouped_gemm_masked"}
    op = op.get(type(case), "grouped_gemm_wgrad")
    harness.check_repeats(op, case, target)
    if target in harness.CPUS and not target.interpreted:
        harness.check_thread_count_does_not_matter(op, case, target)


@over([GroupedGemmCase(4, 61, 72, 272, kind, "f32", "inside") for kind in ("bf16", "fp8")])
def test_a_row_does_not_depend_on_the_others(case, target):
    """Other rows of its expert, other experts, and where its expert's rows begin."""
    inputs = case.inputs(target.device)
    whole, bounds = grouped_gemm(**inputs), inputs["offsets"].tolist()
    e = max(range(case.experts), key=lambda e: bounds[e + 1] - bounds[e])
    begin, end = bounds[e], bounds[e + 1]
    alone = [0] * (e + 1) + [end - begin] * (case.experts - e)
    moved = dict(inputs, offsets=torch.tensor(alone, dtype=torch.int32, device=target.device))
    moved["rows"] = inputs["rows"].view(torch.uint8)[begin:].contiguous().view(inputs["rows"].dtype)
    if case.kind == "fp8":
        scales = inputs["row_scales"][begin:]
        moved["row_scales"] = torch.zeros(scales.shape[1], -(-len(scales) // 4) * 4, device=target.device).t()[
            : len(scales)
        ]
        moved["row_scales"].copy_(scales)
    harness.check_same_bits("an expert alone", [grouped_gemm(**moved)[: end - begin]], [whole[begin:end]])
    fewer = dict(inputs, offsets=torch.tensor([min(b, begin + 1) for b in bounds], dtype=torch.int32))
    fewer["offsets"] = fewer["offsets"].to(target.device)
    harness.check_same_bits("one row of it", [grouped_gemm(**fewer)[begin : begin + 1]], [whole[begin : begin + 1]])


@over([GroupedGemmCase(4, 40, 24, 48, kind, spread="inside") for kind in ("bf16", "fp8")])
def test_writes_only_the_experts_rows(case, target):
    inputs = case.inputs(target.device)
    dtype, bounds = inputs.pop("out_dtype"), inputs["offsets"].tolist()
    guarded = torch.full((case.rows, 40), 7.0, dtype=dtype, device=target.device)
    grouped_gemm_into(**inputs, out=guarded[:, 8:32])
    expected = torch.full_like(guarded, 7.0)
    expected[bounds[0] : bounds[-1], 8:32] = grouped_gemm(**inputs, out_dtype=dtype)[bounds[0] : bounds[-1]]
    assert torch.equal(guarded, expected)


@over([GroupedWgradCase(3, 160, 40, 24, "bf16", "f32")])
def test_gradients_of_micro_batches_add_up(case, target):
    inputs = case.inputs(target.device)
    once = grouped_gemm_wgrad(**inputs)
    inputs.pop("out_dtype")
    out = torch.zeros_like(once)
    for _ in range(2):
        grouped_gemm_wgrad_into(**inputs, out=out, accumulate=True)
    assert torch.equal(out, once + once)


@over([GroupedGemmCase(3, 40, 24, 48, spread="inside"), GroupedGemmCase(3, 40, 24, 48, tokens=9)])
def test_gradient_is_that_of_the_reference(case, target):
    inputs = case.inputs(target.device)
    bounds = inputs["offsets"].tolist()
    own = slice(bounds[0], bounds[-1])
    d_out = torch.linspace(-1, 1, case.rows * case.n, device=target.device).view(case.rows, case.n).to(torch.bfloat16)
    names = ["w"] if case.tokens else ["rows", "w"]
    grads = []
    for function, dtype in ((grouped_gemm, torch.bfloat16), (reference.grouped_gemm, torch.float64)):
        given = dict(inputs, out_dtype=dtype)
        if "row_tokens" in given:
            given["row_tokens"] = given["row_tokens"].clamp(min=0)
        given |= {n: inputs[n].detach().to(dtype) for n in ("rows", "w")}
        given["rows"] = given["rows"].nan_to_num(0.0)
        given |= {n: given[n].requires_grad_() for n in names}
        out = function(**given)
        grads.append(torch.autograd.grad(out[own], [given[n] for n in names], d_out[own].to(dtype)))
    for ours, expected in zip(*grads, strict=True):
        # one rounding to bf16
        torch.testing.assert_close(ours.double(), expected, rtol=2**-8, atol=2**-12)


def test_rows_that_are_gathered_take_no_gradient():
    inputs = GroupedGemmCase(3, 40, 24, 48, tokens=9).inputs()
    inputs["rows"].requires_grad_()
    assert "grouped_gemm: rows must be without gradient where row_tokens are given" in harness.message_of(
        grouped_gemm, **inputs
    )


def test_reference_passes_gradcheck_in_f64():
    inputs = GroupedGemmCase(3, 7, 4, 8).inputs()
    rows, w = (inputs[n].double().requires_grad_() for n in ("rows", "w"))
    assert torch.autograd.gradcheck(
        lambda rows, w: reference.grouped_gemm(rows, w, inputs["offsets"], torch.float64), (rows, w)
    )


@over([GroupedGemmCase(2, 40, 136, 256, "fp8")])
def test_is_the_product_of_what_was_quantised(case, target):
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(40, 256, generator=generator), torch.randn(2, 136, 256, generator=generator)
    x, w = x.to(target.device), w.to(target.device)
    offsets = torch.tensor([0, 17, 40], dtype=torch.int32, device=target.device)
    rows, row_scales = quantize_fp8(x, "1x128")
    values, scales = zip(*(quantize_fp8(one, "128x128") for one in w), strict=True)
    out = grouped_gemm(rows, torch.stack(values), offsets, torch.float32, row_scales, torch.stack(scales))
    exact = torch.cat([x[:17].double() @ w[0].double().t(), x[17:].double() @ w[1].double().t()])
    # two operands with 2^-4 relative rounding at most, errors of 256 products averaging out
    assert float((out - exact).norm() / exact.norm()) < 2**-4


@over([GroupedWgradCase(3, 400, 40, 136, "fp8")], harness.CPUS)
def test_the_weight_gradient_takes_what_quantize_fp8_makes(case, target):
    generator = torch.Generator().manual_seed(4)
    d_out, x = torch.randn(400, 40, generator=generator), torch.randn(400, 136, generator=generator)
    offsets = torch.tensor([3, 150, 150, 390], dtype=torch.int32)
    (a, a_scales), (b, b_scales) = (quantize_fp8(t, "128x1", offsets=offsets) for t in (d_out, x))
    out = grouped_gemm_wgrad(a, b, offsets, torch.float32, a_scales, b_scales)
    exact = torch.stack([d_out[s:e].double().t() @ x[s:e].double() for s, e in ((3, 150), (150, 150), (150, 390))])
    assert float((out - exact).norm() / exact.norm()) < 2**-4


@over([GroupedGemmCase(2, 6, 20, 200, "w8a16", "f32")], harness.VECTOR_CPUS)
def test_extreme_rows_with_fp8_weights_have_the_same_bits_on_every_instruction_set(case, target):
    inputs = case.inputs()
    for scale in (2.0**-128, 2.0**-70, 2.0**119, 2.0**126):
        extreme = dict(inputs, rows=(inputs["rows"].float() * scale).to(torch.bfloat16))
        got = grouped_gemm(**extreme)
        if not target.interpreted:
            with harness.Target("cpu-generic", isa="generic").active():
                harness.check_same_bits(f"rows times {scale}", [got], [grouped_gemm(**extreme)])


def _right() -> dict:
    return GroupedGemmCase(3, 10, 130, 256, "fp8", spread="even").inputs()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": torch.zeros(10, 256)}, "rows must be bf16|e4m3[tokens, k]"),
        ({"w": torch.zeros(3, 130, 128).to(torch.float8_e4m3fn)}, "w_e4m3 must be e4m3[experts, n, k]"),
        ({"w": torch.zeros(3, 130, 256, dtype=torch.bfloat16)}, "w_scales must be given with e4m3 in w, and only then"),
        ({"row_scales": None}, "row_scales must be given with e4m3 in rows, and only then"),
        ({"row_scales": torch.zeros(10, 2)}, "row_scales must be f32[tokens, ceil(k/128)], column-major"),
        ({"w_scales": torch.zeros(3, 130, 2)}, "w_scales must be f32[experts, ceil(n/128), ceil(k/128)]"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, "offsets must be i32[experts + 1], which is 4"),
        ({"offsets": torch.zeros(4, dtype=torch.int64)}, "offsets must be i32[bounds]"),
        ({"out_dtype": torch.float16}, "out_dtype must be bf16 or f32; got torch.float16"),
        ({"row_tokens": torch.zeros(4, dtype=torch.int64)}, "row_tokens must be i32[rows]"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(grouped_gemm, **(_right() | change))
    assert message.startswith("grouped_gemm: ") and sentence in message


VALUES = [
    ({"offsets": [0, 7, 3, 10]}, "offsets must ascend within 0 .. 10; offsets[2] is 3 after 7"),
    ({"offsets": [0, 3, 7, 11]}, "offsets must ascend within 0 .. 10; offsets[3] is 11 after 7"),
    ({"offsets": [-1, 3, 7, 10]}, "offsets must ascend within 0 .. 10; offsets[0] is -1 after 0"),
    ({"row_tokens": [0, 1, 2, 10, 4]}, "row_tokens must be rows of rows, 0 .. 9; row_tokens[3] is 10"),
    ({"row_tokens": [0, 1, 2, -2, 4]}, "row_tokens must be rows of rows, 0 .. 9; row_tokens[3] is -2"),
]


def _wrong(change: dict, device: str = "cpu") -> dict:
    inputs = GroupedGemmCase(3, 10, 24, 48, spread="even").inputs()
    inputs |= {name: torch.tensor(value, dtype=torch.int32) for name, value in change.items()}
    if "row_tokens" in change:
        inputs["offsets"] = torch.tensor([0, 2, 4, 5], dtype=torch.int32)
    return {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}


@pytest.mark.parametrize(("change", "sentence"), VALUES)
def test_a_cpu_refuses_bad_values_always(change, sentence):
    assert harness.message_of(grouped_gemm, **_wrong(change)).startswith(f"grouped_gemm: {sentence} (csrc/")
    assert harness.message_of(grouped_gemm, **_wrong(change), check_indices=True) == f"grouped_gemm: {sentence}"


@pytest.mark.parametrize(("change", "sentence"), VALUES)
@over([GroupedGemmCase(1, 1, 8, 16)], harness.GPUS)
def test_a_gpu_refuses_bad_values_when_asked_and_follows_none_of_them_otherwise(case, target, change, sentence):
    inputs = _wrong(change, target.device)
    grouped_gemm(**inputs)
    assert harness.message_of(grouped_gemm, **inputs, check_indices=True) == f"grouped_gemm: {sentence}"


def test_bad_counts_and_bad_offsets_of_a_weight_gradient_are_answered_with_a_sentence():
    inputs = GroupedGemmMaskedCase(3, 4, 8, 16).inputs()
    inputs["counts"][1] = 5
    sentence = "grouped_gemm: counts must be 0 .. 4; counts[1] is 5"
    assert harness.message_of(grouped_gemm_masked, **inputs).startswith(sentence)
    assert harness.message_of(grouped_gemm_masked, **inputs, check_indices=True) == sentence
    inputs = GroupedWgradCase(2, 10, 8, 16).inputs()
    inputs["offsets"] = torch.tensor([0, 12, 10], dtype=torch.int32)
    sentence = "grouped_gemm_wgrad: offsets must ascend within 0 .. 10; offsets[1] is 12 after 0"
    assert harness.message_of(grouped_gemm_wgrad, **inputs).startswith(sentence)
    assert harness.message_of(grouped_gemm_wgrad, **inputs, check_indices=True) == sentence
    inputs = GroupedWgradCase(2, 300, 8, 16, "fp8").inputs()
    inputs["a_scales"] = inputs["a_scales"][:, :3]
    inputs["b_scales"] = inputs["b_scales"][:, :3]
    assert "a_scales must be of 4 groups or more" in harness.message_of(grouped_gemm_wgrad, **inputs)


def test_a_given_output_takes_no_gradient():
    inputs = GroupedGemmCase(3, 10, 24, 48).inputs()
    inputs.pop("out_dtype")
    inputs["w"].requires_grad_()
    message = harness.message_of(grouped_gemm_into, **inputs, out=torch.zeros(10, 24))
    assert "grouped_gemm: out must be computed without gradient" in message


def test_registration():
    bf16, fp8 = (GroupedGemmCase(3, 10, 24, 48, kind).inputs() for kind in ("bf16", "fp8"))
    harness.check_registration("grouped_gemm", bf16["rows"].requires_grad_(), bf16["w"].requires_grad_(),
                               bf16["offsets"], torch.float32)  # fmt: skip
    harness.check_registration("grouped_gemm", *fp8.values())
    values = {n: v for n, v in fp8.items() if n != "out_dtype"}
    rows, w, offsets, row_scales, w_scales = values.values()
    harness.check_registration("grouped_gemm_into", rows, w, offsets, torch.zeros(10, 24), True, row_scales, w_scales)
    harness.check_registration("grouped_gemm_masked", *GroupedGemmMaskedCase(3, 4, 8, 16, "fp8").inputs().values())
    wgrad = GroupedWgradCase(3, 16, 8, 24).inputs()
    harness.check_registration("grouped_gemm_wgrad", *wgrad.values())
    wgrad.pop("out_dtype")
    harness.check_registration("grouped_gemm_wgrad_into", *wgrad.values(), torch.zeros(3, 8, 24), True)


def test_compiles_with_its_gradient_and_exports():
    class Product(torch.nn.Module):
        def forward(self, rows, w, offsets):
            return glm5_ops.grouped_gemm(rows, w, offsets, torch.float32).square().sum()

    inputs = GroupedGemmCase(3, 10, 24, 48, spread="even").inputs()
    rows, w, offsets = inputs["rows"].requires_grad_(), inputs["w"].requires_grad_(), inputs["offsets"]
    expected = torch.autograd.grad(Product()(rows, w, offsets), (rows, w))
    compiled = torch.compile(Product(), fullgraph=True, dynamic=True, backend="aot_eager")
    for ours, theirs in zip(torch.autograd.grad(compiled(rows, w, offsets), (rows, w)), expected, strict=True):
        assert torch.equal(ours, theirs)
    given = (rows.detach(), w.detach(), offsets)
    assert torch.equal(torch.export.export(Product(), given).module()(*given), Product()(*given))
