"""What sparse_mla_attention promises on sm_90a beside agreeing with the reference (test_sparse_mla_attention.py)."""

import pytest
import torch

from glm5_ops import sparse_mla_attention, sparse_mla_attention_bwd
from glm5_ops.workloads.sparse_mla_attention import SparseMlaAttentionBwdCase, SparseMlaAttentionCase
from tests import harness
from tests.harness import GPUS, over

FORWARD, BACKWARD = "sparse_mla_attention", "sparse_mla_attention_bwd"
NAN = float("nan")


@over([SparseMlaAttentionCase(3, 90, 130, 20, fill="any", more="ls"), SparseMlaAttentionCase(3, 90, 70, 64, 512)], GPUS)
def test_same_bits_twice_and_in_any_batch(case, target):
    harness.check_repeats(FORWARD, case, target)
    harness.check_rows_do_not_depend_on_the_batch(FORWARD, case, target)


@over([SparseMlaAttentionBwdCase(4, 20, 70, 20, 512, fill=fill, more="ls") for fill in ("any", "same")], GPUS)
def test_gradient_has_the_same_bits_twice(case, target):
    harness.check_repeats(BACKWARD, case, target)


@over([SparseMlaAttentionCase(1, 90, 70, 64, fill="any", more="s")], GPUS)
def test_a_shard_of_heads_has_the_bits_of_all_heads(case, target):
    inputs = case.inputs(target.device)
    out, lse, _ = sparse_mla_attention(**inputs)
    for first, last in ((0, 8), (24, 48), (5, 6), (61, 64)):
        part = inputs | {"q": inputs["q"][:, first:last], "sink": inputs["sink"][first:last]}
        shard, shard_lse, _ = sparse_mla_attention(**part)
        harness.check_same_bits("shard", [shard, shard_lse], [out[:, first:last], lse[:, first:last]])


@over([SparseMlaAttentionCase(2, 50, 70, 8, fill="any", more="lsp")], GPUS)
def test_nan_in_keys_that_nobody_chose_leaks_nothing(case, target):
    inputs = case.inputs(target.device)
    present = (inputs["indices"] >= 0) & (inputs["indices"] < case.keys)
    inputs["indices"] = torch.where(present, inputs["indices"] % 17, inputs["indices"])
    poisoned = inputs["kv"].clone()
    poisoned[17:] = NAN
    before, after = (sparse_mla_attention(**(inputs | {"kv": kv})) for kv in (inputs["kv"], poisoned))
    harness.check_same_bits(FORWARD, after, before)
    del inputs["v_dim"], inputs["probabilities"]
    out, lse = before[:2]
    given = {"d_out": torch.ones_like(out), "d_lse": torch.ones_like(lse), "out": out, "lse": lse}
    before, after = (sparse_mla_attention_bwd(**(inputs | given | {"kv": kv})) for kv in (inputs["kv"], poisoned))
    harness.check_same_bits(BACKWARD, after, before)
    assert not after[1][17:].any()


@over([SparseMlaAttentionCase(4, 30, 6, 5)], GPUS)
def test_nan_in_a_key_spreads_to_the_tokens_that_chose_it_alone(case, target):
    inputs = case.inputs(target.device)
    key = int(inputs["indices"].max())
    inputs["kv"][key, 3] = NAN  # in one column: still every column of out, since its score is NaN
    chose = (inputs["indices"] == key).any(1)
    assert 0 < int(chose.sum()) < case.tokens
    out, lse, _ = sparse_mla_attention(**inputs)
    assert torch.equal(lse.isnan(), chose[:, None].expand_as(lse))
    assert torch.equal(out.isnan(), chose[:, None, None].expand_as(out))


@over([SparseMlaAttentionBwdCase(3, 30, 6, 5)], GPUS)
def test_a_gradient_that_is_not_finite_marks_the_keys_of_its_token_alone(case, target):
    inputs = case.inputs(target.device)
    exact = sparse_mla_attention_bwd(**inputs)
    inputs["d_out"][1, 2] = NAN
    d_q, d_kv, _ = sparse_mla_attention_bwd(**inputs)
    named = torch.zeros(case.keys, dtype=torch.bool, device=target.device)
    named[inputs["indices"][1][inputs["indices"][1] >= 0].long()] = True
    assert 0 < int(named.sum()) < case.keys
    assert bool(d_kv[named].isnan().all()) and bool(d_kv[~named].isfinite().all())
    assert bool(d_q[1, 2].isnan().all()) and bool(d_q[0].isfinite().all())
    # without the NaN the unit of the sums is the same, so the other keys keep their bits
    harness.check_same_bits("other keys", [d_kv[~named]], [exact[1][~named]])


@over([SparseMlaAttentionCase(2, 30, 20, 4)], GPUS)
def test_queries_and_keys_may_be_parts_of_wider_tensors(case, target):
    inputs = case.inputs(target.device)
    wide_q = torch.full((2, 9, 640), NAN, device=target.device).bfloat16()
    wide_kv = torch.full((30, 656), NAN, device=target.device).bfloat16()
    wide_q[:, 2:6, 64:], wide_kv[:, 80:] = inputs["q"], inputs["kv"]
    parts = {"q": wide_q[:, 2:6, 64:], "kv": wide_kv[:, 80:]}
    harness.check_same_bits(FORWARD, sparse_mla_attention(**(inputs | parts)), sparse_mla_attention(**inputs))


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 9, 4, 3, 64, 32), "qk_dim must be 576 or 512 on CUDA, got 64"),
        ((2, 9, 4, 3, 576, 576), "v_dim must be 512 on CUDA, got 576"),
        ((1, 1, 1, 1025, 512, 512), "heads must be at most 1024 on CUDA, got 1025"),
    ],
)
@over([SparseMlaAttentionCase(1, 1, 1, 1)], GPUS)
def test_sizes_without_a_kernel_are_refused(case, target, shape, sentence):
    inputs = SparseMlaAttentionCase(*shape).inputs(target.device)
    assert f"{FORWARD}: {sentence}" in harness.message_of(sparse_mla_attention, **inputs)
    inputs = SparseMlaAttentionBwdCase(*shape).inputs(target.device)
    assert f"{BACKWARD}: {sentence}" in harness.message_of(sparse_mla_attention_bwd, **inputs)


@over([SparseMlaAttentionCase(2, 9, 4, 3)], GPUS)
def test_rows_that_cannot_be_copied_16_bytes_at_a_time_are_refused(case, target):
    inputs = case.inputs(target.device)
    odd = torch.zeros(9, 577, dtype=torch.bfloat16, device=target.device)[:, 1:]
    message = harness.message_of(sparse_mla_attention, **(inputs | {"kv": odd}))
    assert f"{FORWARD}: the rows of kv must lie at multiples of 16 bytes on CUDA; its stride is 577" in message
