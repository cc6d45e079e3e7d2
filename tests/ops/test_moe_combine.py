import pytest
import torch

from glm5_ops import moe_combine, moe_combine_bwd, reference
from glm5_ops.workloads.moe_combine import EDGES, EDGES_BWD, MoeCombineBwdCase, MoeCombineCase
from tests import harness
from tests.harness import CPUS, GPUS, VECTOR_CPUS, over

FORWARD, BACKWARD = "moe_combine", "moe_combine_bwd"
LARGER = MoeCombineCase(50, 8, 2100, shared=True, dropped=True), MoeCombineBwdCase(50, 8, 2100, dropped=True)


def op_of(case):
    return BACKWARD if isinstance(case, MoeCombineBwdCase) else FORWARD


@over(EDGES)
def test_matches_the_reference(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(EDGES_BWD)
def test_gradient_matches_the_reference(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over((*EDGES, *EDGES_BWD), VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic(op_of(case), case, target)


@over((*EDGES, *EDGES_BWD), GPUS)
def test_a_gpu_gives_the_bits_of_a_processor(case, target):
    harness.check_same_bits_on_a_gpu_and_generic(op_of(case), case, target)


@over(LARGER)
def test_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats(op_of(case), case, target)
    harness.check_thread_count_does_not_matter(op_of(case), case, target)
    if op_of(case) == FORWARD:
        harness.check_rows_do_not_depend_on_the_batch(FORWARD, case, target)


@over([MoeCombineCase(9, 8, 200, shared=True)])
def test_where_rows_lie_does_not_matter(case, target):
    inputs = case.inputs(target.device)
    order = torch.randperm(len(inputs["rows"]), generator=torch.Generator().manual_seed(2)).to(target.device)
    moved = inputs | {"rows": inputs["rows"][order], "slots": order.argsort()[inputs["slots"].long()].int()}
    harness.check_same_bits("moved", [moe_combine(**moved)], [moe_combine(**inputs)])


@over([MoeCombineCase(3, 4, 70, weights=weights) for weights in (True, False)])
def test_is_a_chain_of_fused_multiply_adds(case, target):
    inputs = case.inputs(target.device)
    rows, slots = inputs["rows"].cpu().double(), inputs["slots"].cpu().long()
    weights = torch.ones(slots.shape) if inputs["weights"] is None else inputs["weights"].cpu()
    total = torch.zeros(3, 70)
    for k in range(4):  # bf16 times f32 is exact in f64, and so is the sum but for rare cases
        total = (rows[slots[:, k]] * weights[:, k, None].double() + total.double()).float()
    harness.check_same_bits("chain", [moe_combine(**inputs)], [total.bfloat16().to(target.device)])


@over([MoeCombineBwdCase(4, 3, 200)])
def test_the_products_of_the_gradient_are_64_chains(case, target):
    inputs = case.inputs(target.device)
    rows, d_out = inputs["rows"].cpu().double(), inputs["d_out"].cpu().double()
    chains = torch.zeros(4, 3, 64)
    for begin in range(0, 200, 64):
        products = d_out[:, None, begin : begin + 64] * rows[inputs["slots"].cpu().long(), begin : begin + 64]
        width = products.shape[2]
        chains[..., :width] = (products + chains[..., :width].double()).float()
    while chains.shape[2] > 1:
        chains = chains[..., : chains.shape[2] // 2] + chains[..., chains.shape[2] // 2 :]
    harness.check_same_bits("chains", [moe_combine_bwd(**inputs)[1].cpu()], [chains[..., 0]])


@over([MoeCombineCase(5, 8, 72, dropped=True), MoeCombineCase(0, 8, 72)])
def test_rows_that_no_slot_names_get_zeros(case, target):
    inputs = case.inputs(target.device)
    d_out = torch.ones(case.tokens, case.hidden, dtype=torch.bfloat16, device=target.device)
    d_rows, d_weights = moe_combine_bwd(d_out, inputs["rows"], inputs["slots"], inputs["weights"])
    named = torch.zeros(len(d_rows), dtype=torch.bool)
    slots = inputs["slots"].cpu()
    present = (slots >= 0) & (slots < len(d_rows))
    named[slots[present].long()] = True
    assert not d_rows.cpu()[~named].any() and d_rows.cpu()[named].all()
    assert (d_weights.cpu()[~present] == 0).all() and d_weights.isfinite().all()


@over([MoeCombineCase(2, 8, 64, dropped=True, shared=True)])
def test_a_token_without_a_row_is_its_shared_expert(case, target):
    inputs = case.inputs(target.device)
    inputs["slots"][1] = -1
    harness.check_same_bits("shared", [moe_combine(**inputs)[1]], [inputs["shared"][1]])
    alone = moe_combine(inputs["rows"], inputs["slots"])
    assert not alone[1].view(torch.int16).any(), "zeros, without a sign"


@over([MoeCombineCase(6, 4, 70, shared=True, dropped=dropped) for dropped in (False, True)])
def test_autograd_gives_the_gradient_of_the_formula(case, target):
    inputs = {n: v.nan_to_num() if v.is_floating_point() else v for n, v in case.inputs(target.device).items()}
    names = ("rows", "weights", "shared")
    leaves = {n: inputs[n].clone().requires_grad_() for n in names}
    exact = {n: inputs[n].double().requires_grad_() for n in names}
    d_out = torch.randn(6, 70, generator=torch.Generator().manual_seed(3)).bfloat16().to(target.device)
    moe_combine(**(inputs | leaves)).backward(d_out)
    reference.moe_combine(**(inputs | exact)).backward(d_out.double())
    for name in names:
        torch.testing.assert_close(leaves[name].grad.double(), exact[name].grad, rtol=2**-8, atol=1e-5)


def test_gradients_that_nobody_wants_are_not_computed():
    inputs = MoeCombineCase(3, 2, 8, shared=True).inputs()
    inputs["slots"][:] = 0  # d_rows would be refused
    inputs["shared"].requires_grad_()
    moe_combine(**inputs).sum().backward()
    assert inputs["shared"].grad.eq(1).all()


def test_reference_passes_gradcheck_in_f64():
    inputs = MoeCombineCase(3, 2, 4, shared=True, dropped=True).inputs()
    floats = [inputs[n].nan_to_num().double().requires_grad_() for n in ("rows", "weights", "shared")]
    assert torch.autograd.gradcheck(lambda r, w, s: reference.moe_combine(r, inputs["slots"], w, s), floats)


def test_reference_gradient_is_that_of_the_reference():
    inputs = MoeCombineBwdCase(5, 3, 7, dropped=True).inputs()
    d_out, rows, weights = (inputs[n].nan_to_num().double() for n in ("d_out", "rows", "weights"))
    leaves = rows.requires_grad_(), weights.requires_grad_()
    expected = torch.autograd.grad(reference.moe_combine(leaves[0], inputs["slots"], leaves[1]), leaves, d_out)
    got = reference.moe_combine_bwd(d_out, rows.detach(), inputs["slots"], weights.detach())
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def given():
    return {"rows": torch.zeros(6, 8).bfloat16(), "slots": torch.arange(6, dtype=torch.int32).view(3, 2)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": torch.zeros(6, 8)}, "rows must be bf16[rows, hidden]"),
        ({"rows": torch.zeros(8, 6).bfloat16().t()}, "with strides [1, 6]"),
        ({"slots": torch.zeros(3, 2)}, "slots must be i32[tokens, topk]"),
        (
            {"weights": torch.zeros(3, 3)},
            "weights must be f32[tokens, topk], row-major, where tokens is 3 and topk is 2",
        ),
        ({"weights": torch.zeros(3, 2).bfloat16()}, "weights must be f32[tokens, topk]"),
        ({"shared": torch.zeros(3, 9).bfloat16()}, "shared must be bf16[tokens, hidden]"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(moe_combine, **(given() | change))
    assert message.startswith("moe_combine: ") and sentence in message


@over([MoeCombineBwdCase(3, 2, 8)], CPUS)
def test_a_row_that_is_named_twice_is_refused_before_anything_is_written(case, target):
    inputs = case.inputs()
    inputs["slots"][2, 1] = inputs["slots"][0, 1]
    message = harness.message_of(moe_combine_bwd, **inputs)
    row = int(inputs["slots"][0, 1])
    assert f"moe_combine_bwd: slots must name a row once; row {row} is named at [0, 1] and [2, 1]" in message


@over([MoeCombineBwdCase(3, 2, 8)], GPUS)
def test_on_a_gpu_the_last_place_gives_the_gradient_or_is_refused_on_demand(case, target):
    inputs = case.inputs(target.device)
    inputs["slots"][2, 1] = inputs["slots"][0, 1]
    row = int(inputs["slots"][0, 1])
    expected = (inputs["d_out"][2].float() * inputs["weights"][2, 1]).bfloat16()
    harness.check_same_bits("last", [moe_combine_bwd(**inputs)[0][row]], [expected])
    message = harness.message_of(moe_combine_bwd, **inputs, check_indices=True)
    assert f"slots must name a row once; row {row} is named at [0, 1] and [2, 1]" in message


def test_registration():
    inputs = MoeCombineCase(3, 2, 8, shared=True).inputs()
    rows, slots, weights, shared = inputs["rows"], inputs["slots"], inputs["weights"], inputs["shared"]
    leaves = [t.clone().requires_grad_() for t in (rows, weights, shared)]
    harness.check_registration(FORWARD, leaves[0], slots, leaves[1], leaves[2])
    harness.check_registration(FORWARD, rows, slots, None, None)
    harness.check_registration(BACKWARD, shared, rows.nan_to_num(), slots, weights, False)
    harness.check_registration(BACKWARD, shared, rows, slots, None, True)


def test_compiles_with_its_gradient():
    def loss(rows, slots, weights):
        return (moe_combine(rows, slots, weights) * 2).float().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (4, 7):
        inputs = MoeCombineCase(tokens, 2, 16).inputs()
        leaves = [inputs[n].nan_to_num().requires_grad_() for n in ("rows", "weights")]
        ours, theirs = (torch.autograd.grad(f(leaves[0], inputs["slots"], leaves[1]), leaves) for f in (compiled, loss))
        harness.check_same_bits("gradients", ours, theirs)
