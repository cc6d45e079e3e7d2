import dataclasses

import pytest
import torch

from glm5_ops import indexer_logits, indexer_logits_bwd, indexer_logits_paged, reference
from glm5_ops.ops._indices import check_block_table, check_windows
from glm5_ops.reference.indexer_logits import keys_of
from glm5_ops.workloads._compare import cosine_difference
from glm5_ops.workloads._indexer import PAGE
from glm5_ops.workloads.indexer_logits import (
    ANY_SIZES,
    ANY_SIZES_BWD,
    ANY_SIZES_PAGED,
    EDGES,
    EDGES_BWD,
    EDGES_PAGED,
    IndexerLogitsBwdCase,
    IndexerLogitsCase,
    IndexerLogitsPagedCase,
)
from tests import harness
from tests.harness import over

CPUS = tuple(t for t in harness.TARGETS if t not in harness.GPUS)
BOTH = tuple(IndexerLogitsCase(37, 130, dtype=dtype, windows="random") for dtype in ("e4m3", "bf16"))
BOTH_PAGED = tuple(IndexerLogitsPagedCase(3, 150, 2, dtype=dtype) for dtype in ("e4m3", "bf16"))


@over(EDGES)
def test_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("indexer_logits", case, target)


@over(EDGES_PAGED)
def test_paged_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("indexer_logits_paged", case, target)


@over(ANY_SIZES, CPUS)
def test_a_cpu_takes_any_sizes(case, target):
    harness.check_matches_reference("indexer_logits", case, target)


@over(ANY_SIZES_PAGED, CPUS)
def test_a_cpu_takes_any_sizes_paged(case, target):
    harness.check_matches_reference("indexer_logits_paged", case, target)


@over((*EDGES, *ANY_SIZES), harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic("indexer_logits", case, target)


@over((*EDGES_PAGED, *ANY_SIZES_PAGED), harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits_paged(case, target):
    harness.check_same_bits_as_generic("indexer_logits_paged", case, target)


@over(BOTH)
def test_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats("indexer_logits", case, target)
    harness.check_thread_count_does_not_matter("indexer_logits", case, target)
    harness.check_rows_do_not_depend_on_the_batch("indexer_logits", case, target)


@over(BOTH_PAGED)
def test_paged_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats("indexer_logits_paged", case, target)
    harness.check_thread_count_does_not_matter("indexer_logits_paged", case, target)
    harness.check_rows_do_not_depend_on_the_batch("indexer_logits_paged", case, target)


@over(BOTH)
def test_a_score_does_not_depend_on_the_window(case, target):
    inputs = case.inputs(target.device)
    whole = dict(inputs, windows=torch.tensor([[0, case.keys]], dtype=torch.int32).repeat(case.tokens, 1))
    whole["windows"] = whole["windows"].to(target.device)
    got, scores = indexer_logits(**inputs), indexer_logits(**whole)
    s = torch.arange(case.keys, device=target.device)
    inside = (s >= inputs["windows"][:, :1]) & (s < inputs["windows"][:, 1:])
    harness.check_same_bits("cut windows", [got], [torch.where(inside, scores, float("-inf"))])
    assert inside.any() and not inside.all()


@over(BOTH)
def test_keys_outside_a_window_do_not_leak(case, target):
    inputs = case.inputs(target.device)
    inputs["windows"] = torch.tensor([[40, 75], [9, 9], [41, 74]], dtype=torch.int32).repeat(13, 1)[: case.tokens]
    inputs["windows"] = inputs["windows"].to(target.device)
    expected = indexer_logits(**inputs)
    for outside in (slice(0, 40), slice(75, None)):
        inputs["k"][outside] = float("nan")
        if "k_scales" in inputs:
            inputs["k_scales"][outside] = float("nan")
    harness.check_same_bits("poisoned keys", [indexer_logits(**inputs)], [expected])


def _dense_of(inputs: dict, sequence: int) -> dict:
    """The same problem for the tokens of one sequence, with its keys in a matrix."""
    own = inputs["sequences"] == sequence
    windows = inputs["windows"][own]
    pages = inputs["block_table"][sequence, : -(-int(windows[:, 1].max()) // PAGE)].long()
    k, scales = keys_of(inputs["cache"][pages], inputs["q"])
    dense = {"q": inputs["q"][own], "k": k, "weights": inputs["weights"][own], "windows": windows}
    return dense if scales is None else dense | {"k_scales": scales}


@over((*BOTH_PAGED, IndexerLogitsPagedCase(2, 200, 8)))
def test_paged_keys_give_the_bits_of_dense_ones(case, target):
    inputs = case.inputs(target.device)
    paged = indexer_logits_paged(**inputs)
    for sequence in range(case.sequences):
        dense = indexer_logits(**_dense_of(inputs, sequence))
        own = paged[inputs["sequences"] == sequence]
        harness.check_same_bits(f"sequence {sequence}", [own[:, : dense.shape[1]]], [dense])
        assert bool((own[:, dense.shape[1] :] == float("-inf")).all())


@over(BOTH_PAGED)
def test_pages_may_lie_in_any_order_and_sequences_too(case, target):
    inputs = case.inputs(target.device)
    expected = indexer_logits_paged(**inputs)
    order = torch.randperm(inputs["cache"].shape[0], generator=torch.Generator().manual_seed(5)).to(target.device)
    moved = dict(inputs, cache=inputs["cache"][order])
    used = (inputs["block_table"] >= 0) & (inputs["block_table"] < order.shape[0])
    table = order.argsort()[inputs["block_table"].clamp(0, order.shape[0] - 1).long()].int()
    moved["block_table"] = torch.where(used, table, inputs["block_table"]).flip(0)
    moved["sequences"] = case.sequences - 1 - inputs["sequences"]
    assert not torch.equal(moved["block_table"], inputs["block_table"])
    harness.check_same_bits("pages moved", [indexer_logits_paged(**moved)], [expected])
    shuffled = torch.randperm(inputs["q"].shape[0], generator=torch.Generator().manual_seed(6)).to(target.device)
    mixed = {n: v[shuffled] if n in ("q", "weights", "sequences", "windows") else v for n, v in inputs.items()}
    harness.check_same_bits("tokens in any order", [indexer_logits_paged(**mixed)], [expected[shuffled]])


@over(BOTH_PAGED)
def test_a_cache_may_be_part_of_a_larger_one(case, target):
    inputs = case.inputs(target.device)
    expected = indexer_logits_paged(**inputs)
    layers = torch.stack([inputs["cache"]] * 3, 1)
    layers.view(torch.uint8)[:, ::2] = 0x7F
    harness.check_same_bits("strided pages", [indexer_logits_paged(**dict(inputs, cache=layers[:, 1]))], [expected])


@over([IndexerLogitsCase(40, 300, heads, windows="causal") for heads in (32, 64)])
def test_meets_deep_gemms_tolerance(case, target):
    inputs = case.inputs(target.device)
    got, exact = indexer_logits(**inputs), reference.indexer_logits(**dict(inputs, weights=inputs["weights"].double()))
    masked = exact == float("-inf")
    assert torch.equal(got == float("-inf"), masked) and masked.any()
    assert cosine_difference(got.masked_fill(masked, 0), exact.masked_fill(masked, 0)) < 5e-6


@pytest.mark.parametrize("heads", [32, 64])
def test_quantised_scores_are_near_those_in_bf16(heads):
    """DeepGEMM asks for a cosine difference below 1e-3."""
    case = IndexerLogitsCase(64, 512, heads, dtype="bf16", windows="full")
    inputs = case.inputs()
    exact = reference.indexer_logits(**inputs)

    def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = x.float().abs().amax(-1) / 448
        return (x.float() / scale[..., None]).to(torch.float8_e4m3fn), scale

    (q, q_scales), (k, k_scales) = quantised(inputs["q"]), quantised(inputs["k"])
    got = indexer_logits(q, k, inputs["weights"] * q_scales, inputs["windows"], k_scales)
    assert cosine_difference(got, exact) < 1e-3


@over(EDGES_BWD)
def test_gradient_is_as_close_as_torch_is(case, target):
    harness.check_matches_reference("indexer_logits_bwd", case, target)


@over(ANY_SIZES_BWD, CPUS)
def test_gradient_is_as_close_as_torch_is_for_any_sizes_on_a_cpu(case, target):
    harness.check_matches_reference("indexer_logits_bwd", case, target)


@over((*EDGES_BWD, *ANY_SIZES_BWD), harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_gradient(case, target):
    harness.check_same_bits_as_generic("indexer_logits_bwd", case, target)


@over([IndexerLogitsBwdCase(14, 130, dtype=dtype, windows="random") for dtype in ("bf16", "e4m3")])
def test_gradient_has_the_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats("indexer_logits_bwd", case, target)
    harness.check_thread_count_does_not_matter("indexer_logits_bwd", case, target)


@over([IndexerLogitsBwdCase(12, 200, windows="random")])
def test_gradients_of_queries_do_not_depend_on_the_batch(case, target):
    inputs = case.inputs(target.device)
    d_q, _, d_weights = indexer_logits_bwd(**inputs)
    for begin, end in ((0, 1), (5, 9), (11, 12)):
        part = {n: inputs[n][begin:end] for n in ("d_out", "q", "weights", "windows")}
        d_q_part, _, d_weights_part = indexer_logits_bwd(**(inputs | part))
        harness.check_same_bits("d_q and d_weights", [d_q_part, d_weights_part], [d_q[begin:end], d_weights[begin:end]])


@over([IndexerLogitsBwdCase(9, 180)])
def test_keys_and_queries_that_do_not_meet_do_not_touch_each_others_gradients(case, target):
    inputs = case.inputs(target.device)
    windows = torch.tensor([[40, 175], [9, 9], [41, 130]], dtype=torch.int32).repeat(9, 1)[: case.tokens]
    inputs["windows"] = windows.to(target.device)
    inputs["d_out"] = inputs["d_out"].nan_to_num(1.0)
    expected = indexer_logits_bwd(**inputs)
    poisoned = {n: inputs[n].clone() for n in ("k", "q", "weights")}
    poisoned["k"][:40] = poisoned["k"][175:] = poisoned["q"][1::3] = poisoned["weights"][1::3] = float("nan")
    harness.check_same_bits("poisoned", indexer_logits_bwd(**(inputs | poisoned)), expected)
    # a query that meets some keys of a tile reaches these alone
    poisoned["q"][2] = poisoned["weights"][5] = float("nan")
    got = indexer_logits_bwd(**(inputs | poisoned))
    apart = torch.ones(case.keys, dtype=torch.bool)
    apart[41:130] = False
    harness.check_same_bits("keys apart", [got[1][apart.to(target.device)]], [expected[1][apart.to(target.device)]])
    assert got[1][~apart.to(target.device)].isnan().any()


def _gradients(function, inputs: dict, names: tuple[str, ...] = ("q", "k", "weights")) -> list[torch.Tensor]:
    """Of a sum of the scores inside the windows with random factors; NaN comes from outside them."""
    inputs = inputs | {n: inputs[n].detach().clone().requires_grad_() for n in names}
    out = function(**inputs)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return list(torch.autograd.grad(out, [inputs[n] for n in names], factors.where(out != float("-inf"), float("nan"))))


def _exact_gradients(inputs: dict, names: tuple[str, ...] = ("q", "k", "weights")) -> list[torch.Tensor]:
    wide = {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    wide = wide | {n: wide[n].requires_grad_() for n in names}
    out = reference.indexer_logits(**wide)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return list(torch.autograd.grad(out, [wide[n] for n in names], factors))


@over([IndexerLogitsCase(21, 300, dtype="bf16", windows=windows) for windows in ("causal", "packed")])
def test_autograd_gives_the_gradient_of_the_formula(case, target):
    inputs = case.inputs(target.device)
    for ours, exact in zip(_gradients(indexer_logits, inputs), _exact_gradients(inputs), strict=True):
        assert ours.shape == exact.shape and cosine_difference(ours, exact) < 7e-6


@over([IndexerLogitsCase(21, 90, windows="random")])
def test_in_e4m3_the_weights_have_a_gradient(case, target):
    inputs = case.inputs(target.device)
    (ours,) = _gradients(indexer_logits, inputs, ("weights",))
    (exact,) = _exact_gradients(inputs, ("weights",))
    assert ours.dtype == torch.float32 and cosine_difference(ours, exact) < 1e-12


def test_a_product_of_zero_has_no_gradient():
    q, k = torch.zeros(2, 3, 8, dtype=torch.bfloat16), torch.ones(4, 8, dtype=torch.bfloat16)
    windows = torch.tensor([[0, 4], [1, 3]], dtype=torch.int32)
    inputs = {"q": q, "k": k, "weights": torch.ones(2, 3), "windows": windows}
    assert not any(gradient.any() for gradient in _gradients(indexer_logits, inputs))


def test_only_what_needs_a_gradient_gets_one():
    inputs = IndexerLogitsCase(5, 9, 2, 8, "bf16").inputs()
    every = _gradients(indexer_logits, inputs)
    for name, expected in zip(("q", "k", "weights"), every, strict=True):
        harness.check_same_bits(name, _gradients(indexer_logits, inputs, (name,)), [expected])


def test_an_e4m3_operand_takes_no_gradient():
    inputs = IndexerLogitsCase(5, 9, 2, 8).inputs()
    for name, sentence in (
        ("q", "q must be bf16 to have a gradient"),
        ("k_scales", "k_scales must be a tensor that needs no grad"),
    ):
        wrong = inputs | {name: inputs[name].detach().requires_grad_()}
        assert f"indexer_logits: {sentence}" in harness.message_of(indexer_logits, **wrong)
    paged = IndexerLogitsPagedCase(2, 70, heads=2, dim=8).inputs()
    paged["weights"].requires_grad_()
    assert "indexer_logits_paged: weights requires grad, but" in harness.message_of(indexer_logits_paged, **paged)


def test_reference_passes_gradcheck_in_f64():
    inputs = IndexerLogitsCase(4, 7, 3, 5, "bf16", windows="random").inputs()
    operands = [inputs[n].double().requires_grad_() for n in ("q", "k", "weights")]

    def scores(*operands):
        out = reference.indexer_logits(*operands, inputs["windows"])
        return out.masked_fill(out == float("-inf"), 0)

    assert torch.autograd.gradcheck(scores, operands)


def test_the_gradient_is_registered_and_compiles():
    inputs = IndexerLogitsCase(5, 9, 2, 8, "bf16").inputs()
    operands = [inputs[n].requires_grad_() for n in ("q", "k", "weights")]
    harness.check_registration("indexer_logits", *inputs.values())
    for dtype in ("bf16", "e4m3"):
        case = IndexerLogitsBwdCase(5, 9, 2, 8, dtype)
        harness.check_registration("indexer_logits_bwd", *case.inputs().values())

    def loss(q, k, weights):
        return indexer_logits(q, k, weights, inputs["windows"])[:, 0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*operands), operands)
    harness.check_same_bits("compiled", torch.autograd.grad(compiled(*operands), operands), expected)


def _misuse() -> list:
    inputs = IndexerLogitsCase(4, 6, 2, 8).inputs()
    q = inputs["q"]
    return [
        ({"q": q.float()}, "q must be e4m3|bf16[tokens, heads, dim]"),
        ({"k": inputs["k"].bfloat16()}, "k must be torch.float8_e4m3fn as q is"),
        ({"k": inputs["k"][:, :4]}, "k must be e4m3|bf16[keys, dim], with unit stride along the last dimension"),
        ({"weights": inputs["weights"].bfloat16()}, "weights must be f32[tokens, heads]"),
        ({"windows": inputs["windows"].long()}, "windows must be i32[tokens, 2]"),
        ({"windows": inputs["windows"][:3]}, "windows must be i32[tokens, 2], row-major, where tokens is 4"),
        ({"k_scales": None}, "k_scales must be given with e4m3 and only then; got None"),
        ({"k_scales": inputs["k_scales"][1:]}, "k_scales must be f32[keys], where keys is 6"),
        ({"q": q.bfloat16(), "k": inputs["k"].bfloat16()}, "k_scales must be given with e4m3 and only then"),
    ]


@pytest.mark.parametrize(("wrong", "sentence"), _misuse())
def test_misuse_is_answered_with_a_sentence(wrong, sentence):
    message = harness.message_of(indexer_logits, **IndexerLogitsCase(4, 6, 2, 8).inputs() | wrong)
    assert message.startswith("indexer_logits: ") and sentence in message


def _misuse_paged() -> list:
    inputs = IndexerLogitsPagedCase(2, 100, heads=2, dim=8).inputs()
    cache = inputs["cache"]
    return [
        ({"cache": cache[:, 1:]}, "cache must be u8[pages, 64*(dim+4)], 768 bytes a page; got torch.uint8"),
        ({"cache": cache.view(torch.bfloat16)}, "e4m3_cache must be u8[pages, page_bytes]"),
        ({"q": inputs["q"].bfloat16()}, "bf16_cache must be bf16[pages, 64, dim]"),
        ({"block_table": inputs["block_table"].long()}, "block_table must be i32[sequences, max_pages]"),
        ({"sequences": inputs["sequences"][:1]}, "sequences must be i32[tokens], row-major, where tokens is 2"),
    ]


@pytest.mark.parametrize(("wrong", "sentence"), _misuse_paged())
def test_misuse_of_the_paged_form_is_answered_with_a_sentence(wrong, sentence):
    message = harness.message_of(
        indexer_logits_paged, **IndexerLogitsPagedCase(2, 100, heads=2, dim=8).inputs() | wrong
    )
    assert message.startswith("indexer_logits_paged: ") and sentence in message


@pytest.mark.parametrize("window", [[-1, 3], [4, 3], [2, 7], [-3, -2], [2**31 - 1, -(2**31)]])
def test_a_wrong_window_is_answered_with_the_same_sentence_by_the_door_and_by_check_indices(window):
    inputs = IndexerLogitsCase(4, 6, 2, 8).inputs()
    inputs["windows"][2] = torch.tensor(window, dtype=torch.int32)
    sentence = f"indexer_logits: windows[2] must be a range within the 6 keys; got {window}"
    assert harness.message_of(indexer_logits, **inputs).startswith(sentence + " (csrc/core/window_check.h:")
    assert harness.message_of(check_windows, "indexer_logits", inputs["windows"], 6) == sentence


@pytest.mark.parametrize(
    ("name", "index", "value", "sentence"),
    [
        ("sequences", (1,), 2, "sequences[1] must be a row of block_table, which has 2; got 2"),
        ("sequences", (0,), -1, "sequences[0] must be a row of block_table, which has 2; got -1"),
        ("block_table", (0, 1), 99, "block_table[0, 1] must be a page of the cache, since the window of row 0 uses it"),
        ("block_table", (1, 0), -1, "block_table[1, 0] must be a page of the cache, since the window of row 1 uses it"),
        ("windows", (1, 1), 193, "windows[1] must be a range within the 192 keys; got [0, 193]"),
    ],
)
def test_wrong_indices_of_the_paged_form_are_answered_with_a_sentence(name, index, value, sentence):
    inputs = IndexerLogitsPagedCase(2, 100, heads=2, dim=8, ragged=False).inputs()
    inputs["cache"] = inputs["cache"][:5]
    inputs["block_table"][inputs["block_table"] == 5] = 0
    inputs[name][index] = value
    message = harness.message_of(indexer_logits_paged, **inputs)
    assert message.startswith("indexer_logits_paged: " + sentence)

    def check() -> None:
        check_windows("indexer_logits_paged", inputs["windows"], 192)
        operands = (inputs[n] for n in ("block_table", "sequences", "windows"))
        check_block_table("indexer_logits_paged", *operands, keys=192, pages=5)

    assert message.startswith(harness.message_of(check) + " (csrc/core/window_check.h:")


def test_right_indices_pass_the_checks():
    inputs = IndexerLogitsPagedCase(3, 150, 2).inputs()
    keys = inputs["block_table"].shape[1] * PAGE
    check_windows("op", inputs["windows"], keys)
    operands = (inputs[n] for n in ("block_table", "sequences", "windows"))
    check_block_table("op", *operands, keys=keys, pages=inputs["cache"].shape[0])


def test_an_unaligned_cache_is_refused():
    inputs = IndexerLogitsPagedCase(2, 100, heads=2, dim=8).inputs()
    wide = torch.cat([inputs["cache"], inputs["cache"]], 1)
    message = harness.message_of(indexer_logits_paged, **dict(inputs, cache=wide[:, 1 : 1 + 64 * 12]))
    assert "the pages of cache must lie at multiples of 4 bytes" in message


def test_registration():
    for dtype in ("e4m3", "bf16"):
        dense = IndexerLogitsCase(4, 6, 2, 8, dtype).inputs()
        harness.check_registration("indexer_logits", *dense.values())
        harness.check_registration(
            "indexer_logits_paged", *IndexerLogitsPagedCase(2, 70, heads=2, dim=8, dtype=dtype).inputs().values()
        )


@pytest.mark.parametrize("dtype", ["e4m3", "bf16"])
def test_compiles_and_exports(dtype):
    class Scores(torch.nn.Module):
        def forward(self, dense, paged):
            return indexer_logits(**dense), indexer_logits_paged(**paged)

    cases = IndexerLogitsCase(5, 9, 2, 8, dtype), IndexerLogitsPagedCase(2, 70, heads=2, dim=8, dtype=dtype)
    compiled = torch.compile(Scores(), fullgraph=True, dynamic=True, backend="aot_eager")
    for seed in (0, 1):
        inputs = [dataclasses.replace(case, seed=seed).inputs() for case in cases]
        harness.check_same_bits("compiled", compiled(*inputs), Scores()(*inputs))
    exported = torch.export.export(Scores(), tuple(inputs))
    harness.check_same_bits("exported", exported.module()(*inputs), Scores()(*inputs))
