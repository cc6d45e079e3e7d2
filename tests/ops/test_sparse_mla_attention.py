import itertools
from importlib.util import find_spec

import pytest
import torch

import glm5_ops
from glm5_ops import reference, sparse_mla_attention, sparse_mla_attention_bwd
from glm5_ops.workloads._compare import LARGEST_COSINE_DIFFERENCE, cosine_difference, in_f64
from glm5_ops.workloads.sparse_mla_attention import (
    ANY_SIZES,
    ANY_SIZES_BWD,
    EDGES,
    EDGES_BWD,
    SparseMlaAttentionBwdCase,
    SparseMlaAttentionCase,
)
from tests import harness
from tests.harness import GPUS, TARGETS, VECTOR_CPUS, over

CPUS = tuple(t for t in TARGETS if t not in GPUS)
FORWARD, BACKWARD = "sparse_mla_attention", "sparse_mla_attention_bwd"
INF, NAN = float("inf"), float("nan")
SMALL = SparseMlaAttentionCase(9, 60, 45, 5, 72, 40, "any", "lsp")
# Rounding to bf16 hides most differences in the last place of f32: of so many elements some lie on its edge.
MANY = (SparseMlaAttentionCase(4, 200, 180), SparseMlaAttentionCase(1, 50, 40, 96, 512, 512))
MANY_BWD = (SparseMlaAttentionBwdCase(3, 200, 180, 16), SparseMlaAttentionBwdCase(1, 50, 40, 32, 512, 512))


@over(EDGES)
def test_matches_the_reference(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(ANY_SIZES, CPUS)
def test_matches_the_reference_at_any_size(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(EDGES_BWD)
def test_gradient_matches_the_reference(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over(ANY_SIZES_BWD, CPUS)
def test_gradient_matches_the_reference_at_any_size(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over((*EDGES, *MANY), VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic(FORWARD, case, target)


@over((*EDGES_BWD, *MANY_BWD), VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_gradient(case, target):
    harness.check_same_bits_as_generic(BACKWARD, case, target)


@over([SparseMlaAttentionCase(1, 2100, 2048, heads) for heads in (1, 8, 64)], (TARGETS[1],))
def test_matches_the_reference_with_2048_keys(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over([SMALL, SparseMlaAttentionCase(5, 300, 200, 40, 64, 64)], CPUS)
def test_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats(FORWARD, case, target)
    harness.check_thread_count_does_not_matter(FORWARD, case, target)
    if "p" not in case.more:  # without probabilities every output has a row for each token
        harness.check_rows_do_not_depend_on_the_batch(FORWARD, case, target)


@over([SparseMlaAttentionBwdCase(9, 30, 45, 5, 72, 40, fill, "ls") for fill in ("any", "same")], CPUS)
def test_gradient_has_the_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(BACKWARD, case, target)
    harness.check_thread_count_does_not_matter(BACKWARD, case, target)


@over([SparseMlaAttentionBwdCase(17, 150, 150, 1, 1000, 1000)], CPUS[:2])
def test_keys_are_summed_in_one_order_with_any_thread_count(case, target):
    harness.check_thread_count_does_not_matter(BACKWARD, case, target)


@over([SparseMlaAttentionCase(3, 40, 33, 4, 64, 32, "any", "lsp")], CPUS[:2])
def test_the_same_bits_a_thousand_times(case, target):
    harness.check_repeats(FORWARD, case, target, times=1000)


@over([SparseMlaAttentionBwdCase(3, 40, 33, 4, 64, 32, "any", "ls")], CPUS[:2])
def test_the_same_gradient_a_thousand_times(case, target):
    harness.check_repeats(BACKWARD, case, target, times=1000)


@over([SparseMlaAttentionCase(4, 90, 70, 64, 96, 64, "any", "s")], CPUS)
def test_a_shard_of_heads_has_the_bits_of_all_heads(case, target):
    inputs = case.inputs()
    out, lse, _ = sparse_mla_attention(**inputs)
    for first, last in ((0, 8), (24, 32), (5, 6), (61, 64)):
        part = inputs | {"q": inputs["q"][:, first:last], "sink": inputs["sink"][first:last]}
        shard, shard_lse, _ = sparse_mla_attention(**part)
        harness.check_same_bits("shard", [shard, shard_lse], [out[:, first:last], lse[:, first:last]])


@over([SparseMlaAttentionCase(6, 90, 70, 5, 96, 64, "any", "lp")], CPUS)
def test_bits_do_not_depend_on_where_absent_places_stand(case, target):
    inputs = case.inputs()
    out, lse, probabilities = sparse_mla_attention(**inputs)
    lengths = inputs.pop("topk_length")
    places = torch.arange(case.topk)
    indices = inputs["indices"]
    present = (indices >= 0) & (indices < case.keys) & (places < lengths[:, None])
    order = (~present).int().sort(dim=1, stable=True).indices
    packed = torch.where(present, indices, -1).gather(1, order)[:, :64].contiguous()
    assert not present.gather(1, order)[:, 64:].any()
    harness.check_same_bits("packed", sparse_mla_attention(**(inputs | {"indices": packed}))[:2], [out, lse])
    assert torch.equal(probabilities != 0, present)


@over([SparseMlaAttentionCase(5, 20, 24, 6, 64, 32, "absent", "sp")], CPUS)
def test_a_token_without_a_key_gives_zero_and_minus_infinity(case, target):
    out, lse, probabilities = sparse_mla_attention(**case.inputs())
    assert not out.any() and not probabilities.any() and bool((lse == -INF).all())
    gradients = sparse_mla_attention_bwd(**SparseMlaAttentionBwdCase(5, 20, 24, 6, 64, 32, "absent", "s").inputs())
    assert not any(g.any() for g in gradients)


@over([SparseMlaAttentionCase(7, 50, 40, 6, 72, 40, "any", "lsp")], CPUS)
def test_nan_in_keys_that_nobody_chose_leaks_nothing(case, target):
    inputs = case.inputs()
    indices = inputs["indices"] % 17  # some keys of the first 17
    inputs["indices"] = torch.where((inputs["indices"] >= 0) & (inputs["indices"] < case.keys), indices, -1)
    poisoned = inputs["kv"].clone()
    poisoned[17:] = NAN
    before, after = (sparse_mla_attention(**(inputs | {"kv": kv})) for kv in (inputs["kv"], poisoned))
    harness.check_same_bits(FORWARD, after, before)
    del inputs["v_dim"], inputs["probabilities"]
    given = {
        "d_out": torch.ones_like(before[0]),
        "d_lse": torch.ones_like(before[1]),
        "out": before[0],
        "lse": before[1],
    }
    before, after = (sparse_mla_attention_bwd(**(inputs | given | {"kv": kv})) for kv in (inputs["kv"], poisoned))
    harness.check_same_bits(BACKWARD, after, before)
    assert not after[1][17:].any()


@over([SparseMlaAttentionCase(8, 30, 6, 5, 40, 24)], CPUS)
def test_nan_in_a_key_spreads_to_the_tokens_that_chose_it_alone(case, target):
    inputs = case.inputs()
    key = int(inputs["indices"].max())
    inputs["kv"][key] = NAN
    chose = (inputs["indices"] == key).any(1)
    assert 0 < int(chose.sum()) < case.tokens
    out, lse, _ = sparse_mla_attention(**inputs)
    assert torch.equal(lse.isnan(), chose[:, None].expand_as(lse))
    assert torch.equal(out.isnan(), chose[:, None, None].expand_as(out))
    inputs["kv"][key] = 0.0
    inputs["kv"][key, 3] = NAN  # in one column: still every column of out, since its score is NaN
    assert torch.equal(sparse_mla_attention(**inputs)[0].isnan(), out.isnan())


@over([SparseMlaAttentionCase(4, 20, 30, 3, 64, 32, "same", "sp")], CPUS)
def test_a_key_that_stands_there_thirty_times_counts_thirty_times(case, target):
    inputs = case.inputs()
    once = inputs | {"indices": inputs["indices"][:, :1].contiguous()}
    (out, lse, probabilities), (_, lse_once, _) = (sparse_mla_attention(**i) for i in (inputs, once))
    torch.testing.assert_close(lse, lse_once + torch.tensor(30.0).log())
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, case.heads / 30))
    assert out.isfinite().all()


@over([SparseMlaAttentionCase(3, 40, 33, 6, 64, 32, "any", "p")], CPUS)
def test_sinks_scale_the_output_and_leave_lse_and_probabilities(case, target):
    inputs = case.inputs()
    out, lse, probabilities = sparse_mla_attention(**inputs)
    sink = torch.tensor([-INF, INF, 0.0, -3.0, 100.0, 3.0])
    with_sink, *others = sparse_mla_attention(**inputs, sink=sink)
    harness.check_same_bits("lse and probabilities", others, [lse, probabilities])
    harness.check_same_bits("no sink", [with_sink[:, 0]], [out[:, 0]])
    assert not with_sink[:, 1].any()
    torch.testing.assert_close(
        with_sink, (out * torch.sigmoid(lse - sink)[..., None]).bfloat16(), rtol=2**-6, atol=1e-5
    )


@over([SparseMlaAttentionCase(4, 50, 40, heads, 48, 32, "any", "lsp") for heads in (1, 3, 40)], CPUS)
def test_probabilities_are_the_sum_of_the_softmax_over_heads(case, target):
    inputs = case.inputs()
    *_, probabilities = sparse_mla_attention(**inputs)
    *_, expected = reference.sparse_mla_attention(**in_f64(inputs))
    torch.testing.assert_close(probabilities.double(), expected, rtol=3e-5, atol=1e-6)
    _, lse, _ = sparse_mla_attention(**(inputs | {"probabilities": False}))
    torch.testing.assert_close(probabilities.sum(1), case.heads * (lse[:, 0] > -INF).float())


@over([SparseMlaAttentionCase(7, 40, 40, 4, 64, 32)], CPUS)
def test_all_keys_of_a_causal_window_give_dense_attention(case, target):
    inputs = case.inputs()
    keys, every = inputs["kv"], torch.arange(case.keys, dtype=torch.int32)
    length = torch.arange(34, 41, dtype=torch.int32)
    indices = every.repeat(case.tokens, 1)
    out, _, _ = sparse_mla_attention(**(inputs | {"indices": indices, "topk_length": length}))
    q, k = inputs["q"].double().transpose(0, 1), keys.double()
    mask = every < length[:, None]
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, k[:, :32], mask, scale=inputs["scale"])
    torch.testing.assert_close(out.double(), dense.transpose(0, 1), rtol=2**-7, atol=8e-4)
    cut = torch.where(mask, indices, 2**31 - 1)
    harness.check_same_bits("cut", sparse_mla_attention(**(inputs | {"indices": cut}))[:1], [out])


@over([SparseMlaAttentionCase(16, 100, 70, 8, 96, 64, fill, "ls") for fill in ("chosen", "any", "same")], CPUS[1:2])
def test_autograd_gives_the_gradient_of_the_formula(case, target):
    inputs = case.inputs()
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(case.tokens, case.heads, n, generator=generator) for n in (case.v_dim, 1)]
    names = ("q", "kv", "sink")
    leaves = {n: inputs[n].clone().requires_grad_() for n in names}
    exact = {n: inputs[n].double().requires_grad_() for n in names}
    for function, given in ((sparse_mla_attention, leaves), (reference.sparse_mla_attention, exact)):
        out, lse, probabilities = function(**(inputs | given))
        assert not probabilities.requires_grad
        lse = torch.where(lse > -INF, lse, 0.0)
        ((out * weights[0].to(out.dtype)).sum() + (lse * weights[1][..., 0].to(lse.dtype)).sum()).backward()
    for name in names:
        assert cosine_difference(leaves[name].grad, exact[name].grad) < LARGEST_COSINE_DIFFERENCE, name


def test_reference_passes_gradcheck_in_f64():
    inputs = SparseMlaAttentionCase(3, 7, 6, 2, 6, 4, "any", "s").inputs()
    leaves = [inputs[n].double().requires_grad_() for n in ("q", "kv", "sink")]

    def attend(q, kv, sink):
        out, lse, _ = reference.sparse_mla_attention(q, kv, inputs["indices"], 0.7, 4, sink=sink)
        return out, torch.where(lse > -INF, lse, 0.0)

    assert torch.autograd.gradcheck(attend, leaves)


def test_reference_gradient_is_that_of_the_reference():
    inputs = SparseMlaAttentionCase(5, 9, 8, 3, 6, 4, "any", "ls").inputs()
    leaves = {n: inputs[n].double().requires_grad_() for n in ("q", "kv", "sink")}
    out, lse, _ = reference.sparse_mla_attention(**(inputs | leaves))
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse)
    wanted = torch.autograd.grad((out, torch.where(lse > -INF, lse, 0.0)), list(leaves.values()), (d_out, d_lse))
    given = {n: t.detach() for n, t in (inputs | leaves).items() if isinstance(t, torch.Tensor)}
    got = reference.sparse_mla_attention_bwd(
        d_out, d_lse, out=out.detach(), lse=lse.detach(), scale=inputs["scale"], **given
    )
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


@over([SparseMlaAttentionCase(65_600, 3, 2, 1, 16, 8)], CPUS[1:2])
def test_more_than_65535_tokens(case, target):
    inputs = case.inputs()
    out, lse, _ = sparse_mla_attention(**inputs)
    tail = {n: inputs[n][-5:] for n in ("q", "indices")}
    harness.check_same_bits("tail", sparse_mla_attention(**(inputs | tail))[:2], [out[-5:], lse[-5:]])
    assert out.any() and out.isfinite().all()


@over([SparseMlaAttentionCase(6, 30, 20, 4, 64, 32)], CPUS[1:2])
def test_queries_and_keys_may_be_parts_of_wider_tensors(case, target):
    inputs = case.inputs()
    wide_q, wide_kv = torch.full((6, 9, 100), NAN).bfloat16(), torch.full((30, 70), NAN).bfloat16()
    wide_q[:, 2:6, 3:67], wide_kv[:, :64] = inputs["q"], inputs["kv"]
    parts = {"q": wide_q[:, 2:6, 3:67], "kv": wide_kv[:, :64]}
    harness.check_same_bits(FORWARD, sparse_mla_attention(**(inputs | parts)), sparse_mla_attention(**inputs))


def _right(**change) -> dict:
    return SparseMlaAttentionCase(4, 20, 8, 3, 32, 16, more="ls").inputs() | change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": torch.zeros(4, 3, 32)}, "q must be bf16[tokens, heads, qk_dim]"),
        ({"q": torch.zeros(3, 32).bfloat16()}, "q must be bf16[tokens, heads, qk_dim]"),
        ({"kv": torch.zeros(20, 30).bfloat16()}, "kv must be bf16[keys, qk_dim]"),
        ({"kv": torch.zeros(32, 20).bfloat16().t()}, "kv must be bf16[keys, qk_dim], with unit stride"),
        ({"indices": torch.zeros(4, 8).long()}, "indices must be i32[tokens, topk]"),
        ({"indices": torch.zeros(5, 8).int()}, "indices must be i32[tokens, topk], row-major, where tokens is 4"),
        ({"topk_length": torch.zeros(3).int()}, "topk_length must be i32[tokens]"),
        ({"sink": torch.zeros(4)}, "sink must be f32[heads], row-major, where heads is 3"),
        ({"v_dim": 33}, "v_dim must be from 1 to qk_dim, which is 32; got 33"),
        ({"v_dim": 0}, "v_dim must be from 1 to qk_dim, which is 32; got 0"),
        ({"scale": NAN}, "scale must be a finite number; got nan"),
        ({"scale": INF}, "scale must be a finite number; got inf"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(sparse_mla_attention, **_right(**change))
    assert message.startswith(f"{FORWARD}: ") and sentence in message


def test_misuse_of_the_gradient_is_answered_with_a_sentence():
    right = SparseMlaAttentionBwdCase(4, 20, 8, 3, 32, 16).inputs()
    for change, sentence in (
        (
            dict.fromkeys(("out", "d_out"), torch.zeros(4, 3, 40).bfloat16()),
            "out must be no wider than qk_dim, which is 32",
        ),
        ({"d_out": torch.zeros(4, 3, 15).bfloat16()}, "d_out must be bf16[tokens, heads, v_dim]"),
        ({"lse": torch.zeros(4, 2)}, "lse must be f32[tokens, heads]"),
    ):
        assert sentence in harness.message_of(sparse_mla_attention_bwd, **(right | change))


def test_registration():
    for more in ("", "lsp"):
        case = SparseMlaAttentionCase(3, 9, 4, 4, 32, 16, more=more)
        inputs = {"topk_length": None, "sink": None, "probabilities": False} | case.inputs()
        order = ("q", "kv", "indices", "scale", "v_dim", "topk_length", "sink", "probabilities")
        for name in ("q", "kv"):
            inputs[name].requires_grad_()
        harness.check_registration(FORWARD, *(inputs[n] for n in order))
    inputs = SparseMlaAttentionBwdCase(3, 9, 4, 4, 32, 16, more="ls").inputs()
    harness.check_registration(BACKWARD, *inputs.values())


def test_compiles_and_exports_with_its_gradient():
    class Attention(torch.nn.Module):
        def forward(self, q, kv, indices):
            out, lse, _ = glm5_ops.sparse_mla_attention(q, kv, indices, 0.3, 16)
            return out.float().sin().sum() + lse.cos().sum()

    def inputs(*sizes):
        made = SparseMlaAttentionCase(*sizes, 3, 32, 16, "same").inputs()
        return [made[n] for n in ("q", "kv", "indices")]

    compiled = torch.compile(Attention(), fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs(5, 20, 8)), Attention()(*inputs(5, 20, 8)))
    more = [t.requires_grad_() if t.is_floating_point() else t for t in inputs(7, 30, 9)]
    gradients = [torch.autograd.grad(function(*more), more[:2]) for function in (compiled, Attention())]
    harness.check_same_bits("gradients", *gradients)
    exported = torch.export.export(Attention(), tuple(inputs(5, 20, 8))).module()
    assert torch.equal(exported(*inputs(5, 20, 8)), Attention()(*inputs(5, 20, 8)))


def test_sizes_of_every_kind_agree_with_the_reference():
    workload = harness.WORKLOADS[FORWARD]
    for heads, qk_dim, topk in itertools.product((1, 3, 8), (1, 31, 33, 130), (1, 31, 33, 129)):
        inputs = SparseMlaAttentionCase(2, 140, topk, heads, qk_dim, max(1, qk_dim - 3), "any", "p").inputs()
        got = workload.run(sparse_mla_attention, inputs)
        verdict = workload.rule.judge(reference.sparse_mla_attention, workload.run, inputs, got)
        assert verdict.passed, f"heads {heads}, qk_dim {qk_dim}, topk {topk}: {verdict}"


@pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: HF's attention is no oracle"
)
def test_is_the_attention_of_transformers_in_the_absorbed_form():
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as hf
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    torch.manual_seed(0)
    tokens, topk, heads, nope, v_head = 90, 32, 4, 24, 40
    config = GlmMoeDsaConfig(
        hidden_size=96, num_attention_heads=heads, num_key_value_heads=heads, q_lora_rank=64, kv_lora_rank=512,
        qk_nope_head_dim=nope, qk_rope_head_dim=64, v_head_dim=v_head, index_n_heads=32, index_topk=topk,
        attn_implementation="eager",
    )  # fmt: skip
    layer = hf.GlmMoeDsaAttention(config, 0).double()
    hidden, angles = torch.randn(1, tokens, 96).double(), torch.randn(1, tokens, 64).double()
    rope = angles.cos(), angles.sin()
    causal = torch.full((1, 1, tokens, tokens), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    layer.o_proj = torch.nn.Identity()
    with torch.no_grad():
        theirs, _, chosen = layer(hidden, rope, causal, position_ids=torch.arange(tokens)[None])

        q = layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(hidden))).view(1, tokens, heads, nope + 64)
        latent, k_rope = layer.kv_a_proj_with_mqa(hidden).split([512, 64], dim=2)
        q_rope, k_rope = hf.apply_rotary_pos_emb_interleave(q[..., nope:], k_rope[:, :, None], *rope, unsqueeze_dim=2)
        keys, values = layer.kv_b_proj.weight.view(heads, nope + v_head, 512).split([nope, v_head], dim=1)
        q = torch.cat((torch.einsum("thd,hdl->thl", q[0, ..., :nope], keys), q_rope[0]), dim=2)
        kv = torch.cat((layer.kv_a_layernorm(latent)[0], k_rope[0, :, 0]), dim=1)
        visible = chosen[0] <= torch.arange(tokens)[:, None]
        indices = torch.where(visible, chosen[0], -1).int().contiguous()

        def outputs(function, q, kv):
            out = function(q, kv, indices, layer.scaling)[0].double()
            return torch.einsum("thl,hvl->thv", out, values).reshape(1, tokens, heads * v_head)

        assert topk < tokens and (indices < 0).any()
        # HF's softmax is of float32, whatever the inputs are
        assert cosine_difference(outputs(reference.sparse_mla_attention, q, kv), theirs) < 1e-10
        ours = outputs(sparse_mla_attention, q.bfloat16(), kv.bfloat16())
    assert cosine_difference(ours, theirs) < 3e-5  # of bf16 queries and keys
