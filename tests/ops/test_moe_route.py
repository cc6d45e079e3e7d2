from importlib.util import find_spec

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from glm5_ops import moe_route, reference
from glm5_ops.workloads.moe_route import EDGES, EDGES_BWD, MoeRouteBwdCase, MoeRouteCase, permutations
from tests import harness
from tests.harness import CPUS, GPUS, VECTOR_CPUS, over

FORWARD, BACKWARD = "moe_route", "moe_route_bwd"
KINDS = [
    MoeRouteCase(41, 256, 8, *groups, scoring) for groups in ((1, 1), (8, 4)) for scoring in ("sigmoid", "softmax")
]


@over(EDGES)
def test_matches_the_reference(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(EDGES_BWD)
def test_gradient_matches_the_reference(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over((*EDGES, *EDGES_BWD), VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic(_op_of(case), case, target)


@over((*EDGES, *EDGES_BWD), GPUS)
def test_a_gpu_gives_the_bits_of_a_processor(case, target):
    harness.check_same_bits_on_a_gpu_and_generic(_op_of(case), case, target)


def _op_of(case):
    return BACKWARD if isinstance(case, MoeRouteBwdCase) else FORWARD


@over([*KINDS, MoeRouteBwdCase(41), MoeRouteBwdCase(41, scoring="softmax")])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(_op_of(case), case, target)
    harness.check_thread_count_does_not_matter(_op_of(case), case, target)


@over(KINDS)
def test_a_token_does_not_depend_on_its_batch(case, target):
    inputs = case.inputs(target.device)
    whole = moe_route(**inputs)[:2]
    for begin, end in ((0, 1), (13, 14), (7, 41)):
        part = moe_route(**(inputs | {"logits": inputs["logits"][begin:end]}))[:2]
        harness.check_same_bits("part of a batch", part, [w[begin:end] for w in whole])


@over(KINDS)
def test_replaying_its_own_choice_changes_no_bit(case, target):
    inputs = case.inputs(target.device)
    once = moe_route(**inputs)
    for dtype in (torch.int32, torch.uint8):
        harness.check_same_bits("replay", moe_route(**inputs, replay_experts=once[0].to(dtype)), once)


@over([MoeRouteCase(12, replay="some")])
def test_rows_of_minus_one_are_routed_and_others_keep_their_order(case, target):
    inputs = case.inputs(target.device)
    given = inputs["replay_experts"]
    experts, weights, _ = moe_route(**inputs)
    alone = moe_route(**(inputs | {"replay_experts": None}))
    harness.check_same_bits("routed rows", [experts[::3], weights[::3]], [t[::3] for t in alone[:2]])
    replayed = torch.arange(12, device=given.device) % 3 != 0
    assert torch.equal(experts[replayed], given[replayed])


@over([MoeRouteCase(9, scoring=scoring) for scoring in ("sigmoid", "softmax")])
def test_a_replay_keeps_the_gradient_of_the_router(case, target):
    inputs = case.inputs(target.device)
    leaf = inputs.pop("logits").requires_grad_()
    given = permutations(9, 256, 8, torch.Generator().manual_seed(5)).to(target.device)
    d_weights = torch.randn(9, 8, generator=torch.Generator().manual_seed(6)).to(target.device)
    moe_route(leaf, **inputs, replay_experts=given)[1].backward(d_weights)
    exact = leaf.detach().double().requires_grad_()
    exact_inputs = inputs | {"bias": inputs["bias"].double()}
    reference.moe_route(exact, **exact_inputs, replay_experts=given)[1].backward(d_weights.double())
    assert leaf.grad.any(dim=1).all()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@over([MoeRouteCase(9, scoring=s, normalize=n) for s in ("sigmoid", "softmax") for n in (True, False)])
def test_autograd_gives_the_gradient_of_the_formula(case, target):
    inputs = case.inputs(target.device)
    leaf = inputs.pop("logits").requires_grad_()
    experts, weights, _ = moe_route(leaf, **inputs)
    d_weights = torch.randn(9, 8, generator=torch.Generator().manual_seed(6)).to(target.device)
    weights.backward(d_weights)
    exact = leaf.detach().double().requires_grad_()
    exact_inputs = inputs | {"bias": inputs["bias"].double()}
    reference.moe_route(exact, **exact_inputs, replay_experts=experts)[1].backward(d_weights.double())
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_a_recomputed_layer_sees_the_same_replay():
    inputs = MoeRouteCase(6, replay="i32").inputs()
    leaf = inputs.pop("logits").requires_grad_()

    def weights(z):
        return moe_route(z, **inputs)[1].square()

    (expected,) = torch.autograd.grad(weights(leaf).sum(), leaf)
    (got,) = torch.autograd.grad(checkpoint(weights, leaf, use_reentrant=False).sum(), leaf)
    harness.check_same_bits("recomputed", [got], [expected])


@over([MoeRouteCase(1)])
def test_ties_go_to_the_smaller_id_and_nan_ranks_last(case, target):
    z = torch.zeros(4, 16, device=target.device)
    z[1, 5], z[2, :] = float("nan"), float("nan")
    z[2, 9], z[3, 3] = -float("inf"), -0.0
    experts, weights, counts = moe_route(z, None, 16)
    ascending = list(range(16))
    assert experts[0].tolist() == ascending and experts[3].tolist() == ascending
    assert experts[1].tolist() == [e for e in ascending if e != 5] + [5]
    assert experts[2].tolist() == [9] + [e for e in ascending if e != 9]
    assert counts.tolist() == [4] * 16 and weights[2].isnan().all()
    groups = moe_route(z[:1], None, 4, 4, 2)[0]
    assert groups.tolist() == [[0, 1, 2, 3]]


@over([MoeRouteCase(64)])
def test_all_tokens_to_the_same_experts_are_counted(case, target):
    inputs = case.inputs(target.device)
    inputs["bias"][:8] = torch.arange(8, 0, -1) * 10.0
    experts, _, counts = moe_route(**inputs)
    assert (experts.cpu() == torch.arange(8)).all()
    assert counts.tolist() == [64] * 8 + [0] * 248


@over([MoeRouteCase(3)], GPUS)
def test_bad_ids_of_a_replay_are_no_address_on_a_gpu(case, target):
    inputs = case.inputs(target.device)
    given = permutations(3, 256, 8, torch.Generator().manual_seed(1))
    given[1, 4], given[2, 7] = 256, -7
    experts, weights, counts = moe_route(**inputs, replay_experts=given.to(target.device))
    assert weights[1].isnan().all() and not weights[::2].isnan().any()
    assert int(counts.sum()) == 3 * 8 - 1
    assert torch.equal(experts[2], moe_route(**inputs)[0][2])


@over([MoeRouteCase(3)], CPUS)
@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 256], "replay_experts[1] must be ids below 256, or -1 throughout; got 256"),
        ([0, 1, 2, 3, 4, 5, 6, -1], "replay_experts[1] must be ids below 256, or -1 throughout; got -1"),
        ([-1, 1, 2, 3, 4, 5, 6, 7], "replay_experts[1] must be ids below 256, or -1 throughout; got 1"),
        ([0, 1, 2, 3, 4, 5, 6, 2], "replay_experts[1] must be distinct; got 2 twice"),
    ],
)
def test_bad_ids_of_a_replay_are_refused_on_a_cpu(case, target, row, sentence):
    given = permutations(3, 256, 8, torch.Generator().manual_seed(1))
    given[1] = torch.tensor(row)
    assert sentence in harness.message_of(moe_route, **case.inputs(), replay_experts=given)


ROUTERS = (
    ("glm_moe_dsa", "GlmMoeDsa", 1, 1),
    ("deepseek_v3", "DeepseekV3", 8, 4),
    ("deepseek_v32", "DeepseekV32", 8, 4),
)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed: its router is no oracle")
@pytest.mark.parametrize(("module", "name", "n_group", "topk_group"), ROUTERS)
def test_routes_as_transformers_does(module, name, n_group, topk_group):
    from importlib import import_module

    folder = f"transformers.models.{module}"
    config_class = getattr(import_module(f"{folder}.configuration_{module}"), f"{name}Config")
    router_class = getattr(import_module(f"{folder}.modeling_{module}"), f"{name}TopkRouter")
    sizes = {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": n_group, "topk_group": topk_group}
    config = config_class(hidden_size=64, routed_scaling_factor=2.5, norm_topk_prob=True, **sizes)
    torch.manual_seed(0)
    router = router_class(config)
    with torch.no_grad():
        router.weight.normal_()
        router.e_score_correction_bias.normal_(0, 0.1)
        logits, their_weights, their_experts = router(torch.randn(200, 64) / 4)
    experts, weights, _ = moe_route(logits, router.e_score_correction_bias, 8, n_group, topk_group, scale=2.5)
    assert torch.equal(experts.long().sort(dim=1).values, their_experts.sort(dim=1).values)
    spread = torch.zeros(200, 256)
    theirs, ours = spread.scatter(1, their_experts, their_weights), spread.scatter(1, experts.long(), weights)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)


def test_reference_passes_gradcheck_in_f64():
    for scoring in ("sigmoid", "softmax"):
        inputs = MoeRouteCase(3, 12, 4, scoring=scoring, replay="i32").inputs()
        given = {n: inputs[n] for n in ("topk", "scoring", "scale", "replay_experts")}

        def weights(z, given=given):
            return reference.moe_route(z, None, **given)[1]

        assert torch.autograd.gradcheck(weights, [inputs["logits"].double().requires_grad_()])


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalize", [True, False])
def test_reference_gradient_is_that_of_the_reference(scoring, normalize):
    inputs = MoeRouteBwdCase(5, 20, 6, scoring=scoring, normalize=normalize).inputs()
    leaf, d = inputs["logits"].double().requires_grad_(), inputs["d_weights"].double()
    forward = reference.moe_route(leaf, None, 6, 1, 1, scoring, normalize, 2.5, inputs["chosen"])[1]
    (expected,) = torch.autograd.grad(forward, leaf, d)
    got = reference.moe_route_bwd(d, leaf.detach(), inputs["chosen"], scoring, normalize, 2.5)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"logits": torch.zeros(3, 8).double()}, "logits must be f32[tokens, experts]"),
        ({"logits": torch.zeros(3, 1025)}, "logits must be of at most 1024 experts"),
        ({"bias": torch.zeros(7)}, "bias must be f32[experts], row-major, where experts is 8"),
        ({"bias": torch.zeros(8, requires_grad=True)}, "bias must be a tensor that needs no grad"),
        ({"topk": 9}, "topk must be 1 .. 8, 1 groups of 8 experts; got 9"),
        ({"topk": 3, "n_group": 4}, "topk must be 1 .. 2, 1 groups of 2 experts; got 3"),
        ({"n_group": 3}, "n_group must be a divisor of the 8 experts"),
        ({"n_group": 2, "topk_group": 3}, "topk_group must be 1 .. n_group; got 3"),
        ({"scoring": "relu"}, "scoring must be sigmoid or softmax; got 'relu'"),
        ({"replay_experts": torch.zeros(3, 3, dtype=torch.int32)}, "replay_experts must be u8|i32[tokens, 2]"),
        ({"replay_experts": torch.zeros(3, 2)}, "replay_experts must be u8|i32[tokens, topk]"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(moe_route, **({"logits": torch.zeros(3, 8), "bias": None, "topk": 2} | change))
    assert message.startswith("moe_route: ") and sentence in message


def test_registration():
    # without grad: torch's check adds up all outputs in place and cannot add weights to experts; the next test has it
    z, bias = torch.randn(4, 16), torch.randn(16)
    harness.check_registration(FORWARD, z, bias, 4, 4, 2, "sigmoid", True, 2.5, None)
    given = torch.arange(4, dtype=torch.uint8).expand(4, 4).contiguous()
    harness.check_registration(FORWARD, z, None, 4, 1, 1, "softmax", False, 1.0, given)
    harness.check_registration(BACKWARD, torch.randn(4, 4), z, given.int(), "softmax", True, 1.0)


def test_compiles_with_its_gradient():
    def loss(z):
        experts, weights, counts = moe_route(z * 2, None, 4)
        return (weights * experts).sum() + counts.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (4, 7):
        z = torch.randn(tokens, 16, requires_grad=True)
        ours, theirs = (torch.autograd.grad(f(z), z) for f in (compiled, loss))
        harness.check_same_bits("gradients", ours, theirs)
