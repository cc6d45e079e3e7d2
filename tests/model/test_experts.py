from importlib.util import find_spec

import pytest
import torch
from torch.nn.functional import silu

from glm5_ops import reference
from glm5_ops.model.experts import PRECISIONS, Experts
from glm5_ops.workloads._compare import cosine_difference
from tests import harness

EXPERTS, HIDDEN, INTERMEDIATE, TOPK = 6, 256, 144, 3
FAR = {"bf16": 3e-5, "fp8": 4e-3}  # cosine differences to f64; e4m3 has four bits


def layer_of(precision, **options):
    torch.manual_seed(1)
    return Experts(EXPERTS, HIDDEN, INTERMEDIATE, precision=precision, **options)


def inputs_of(tokens, dropped=False):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    ids = torch.rand(tokens, EXPERTS, generator=generator).topk(TOPK).indices
    ids[ids == 4] = 0  # no token chooses expert 4; some choose 0 twice
    if dropped:
        ids[::4, 1] = -1
        ids[1::5] = -1
    return x, ids, torch.rand(tokens, TOPK, generator=generator)


def exact(x, ids, weights, gate_up, down, limit=None):
    """The formula, in f64."""
    out = torch.zeros(len(x), HIDDEN, dtype=torch.float64)
    for token, k in (ids >= 0).nonzero().tolist():
        gate, up = (gate_up[ids[token, k]] @ x[token]).chunk(2)
        if limit is not None:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        term = weights[token, k] * (down[ids[token, k]] @ (silu(gate) * up))
        out = out.index_add(0, torch.tensor([token]), term[None])
    return out


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_is_the_formula_and_so_is_its_gradient(precision, dropped):
    layer, (x, ids, weights) = layer_of(precision), inputs_of(21, dropped)
    shared = torch.randn(21, HIDDEN, generator=torch.Generator().manual_seed(3)).bfloat16()
    ours = [t.clone().requires_grad_() for t in (x, weights, shared)]
    theirs = [t.detach().double().requires_grad_() for t in (x, weights, shared, *layer.parameters())]
    out = layer(ours[0], ids, ours[1], ours[2])
    expected = exact(theirs[0], ids, theirs[1], theirs[3], theirs[4]) + theirs[2]
    assert cosine_difference(out.detach(), expected.detach()) < FAR[precision]
    d_out = torch.randn(21, HIDDEN, generator=torch.Generator().manual_seed(4)).bfloat16()
    out.backward(d_out)
    expected.backward(d_out.double())
    for got, of in zip((*ours, *layer.parameters()), theirs, strict=True):
        assert got.grad.dtype == got.dtype
        assert cosine_difference(got.grad, of.grad) < 3 * FAR[precision]
    assert not layer.gate_up_proj.grad[4].any(), "nobody chose expert 4"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_limit_is_that_of_swiglu(precision):
    layer, (x, ids, weights) = layer_of(precision, limit=0.5), inputs_of(9)
    expected = exact(x.double(), ids, weights.double(), *(p.detach().double() for p in layer.parameters()), 0.5)
    with torch.no_grad():
        assert cosine_difference(layer(x, ids, weights), expected) < FAR[precision]
        layer.limit = None
        assert cosine_difference(layer(x, ids, weights), expected) > 10 * FAR[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_token_has_the_same_bits_alone_in_any_batch_and_with_any_thread_count(precision):
    layer, (x, ids, weights) = layer_of(precision), inputs_of(40)
    with torch.no_grad():
        out = layer(x, ids, weights)
        harness.check_same_bits("again", [layer(x, ids, weights)], [out])
        for rows in (slice(7, 8), slice(20, 40)):
            harness.check_same_bits("part", [layer(x[rows], ids[rows], weights[rows])], [out[rows]])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            harness.check_same_bits("one thread", [layer(x, ids, weights)], [out])
        finally:
            torch.set_num_threads(threads)
        assert layer(x[:0], ids[:0], weights[:0]).shape == (0, HIDDEN)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_have_the_same_bits_again(precision):
    x, ids, weights = inputs_of(17, dropped=True)

    def gradients():
        layer, leaf = layer_of(precision), x.clone().requires_grad_()
        layer(leaf, ids, weights).square().sum().backward()
        return leaf.grad, layer.gate_up_proj.grad, layer.down_proj.grad

    harness.check_same_bits("gradients", gradients(), gradients())


def test_the_shared_expert_may_be_computed_on_the_way():
    layer, (x, ids, weights) = layer_of("bf16"), inputs_of(9)
    shared, hidden = torch.randn(3, 3, HIDDEN).bfloat16().requires_grad_(), x.view(3, 3, HIDDEN)
    at_once, later = layer(hidden, ids, weights, shared), layer(hidden, ids, weights, lambda: shared)
    harness.check_same_bits("shared", [later], [at_once])
    assert at_once.shape == hidden.shape
    later.backward(torch.ones_like(later))
    assert shared.grad.eq(1).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_reference_has_the_same_surface(precision):
    ours, theirs = layer_of(precision), layer_of(precision, ops=reference)
    x, ids, weights = inputs_of(12, dropped=True)
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        out = layer(leaf, ids, weights)
        out.sum().backward()
        results.append((out.detach(), leaf.grad, *(p.grad for p in layer.parameters())))
    for got, expected in zip(*results, strict=True):
        assert cosine_difference(got, expected) < (3e-5 if precision == "bf16" else 2e-3)


def test_a_changed_weight_is_quantised_anew():
    layer, (x, ids, weights) = layer_of("fp8", dtype=torch.float32), inputs_of(5)
    with torch.no_grad():
        before = layer(x, ids, weights)
        kept = layer._fp8_of("gate_up_proj", False)
        assert layer._fp8_of("gate_up_proj", False) is kept
        layer.gate_up_proj.mul_(2)
        after = layer(x, ids, weights)
        assert not torch.equal(before, after)
        harness.check_same_bits("fresh", [after], [_copy_of(layer)(x, ids, weights)])


def _copy_of(layer):
    copy = Experts(EXPERTS, HIDDEN, INTERMEDIATE, precision="fp8", dtype=torch.float32)
    copy.load_state_dict(layer.state_dict())
    return copy


@pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: HF's experts are no oracle"
)
def test_is_the_experts_of_transformers():
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig
    from transformers.models.glm_moe_dsa.modeling_glm_moe_dsa import GlmMoeDsaExperts

    config = GlmMoeDsaConfig(
        hidden_size=HIDDEN, moe_intermediate_size=INTERMEDIATE, n_routed_experts=EXPERTS, num_local_experts=EXPERTS,
        experts_implementation="eager",
    )  # fmt: skip
    ours, (x, ids, weights) = layer_of("bf16"), inputs_of(30)
    theirs = GlmMoeDsaExperts(config).double()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = theirs(x.double(), ids, weights.double())
        assert cosine_difference(ours(x, ids, weights), expected) < FAR["bf16"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "fp4"}, "precision must be one of bf16, fp8; got 'fp4'"),
        ({"dtype": torch.float32}, "dtype must be torch.bfloat16, or with fp8 torch.float32; got torch.float32"),
        ({"dtype": torch.float16, "precision": "fp8"}, "dtype must be torch.bfloat16"),
    ],
)
def test_misuse_of_the_layer_is_answered_with_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=f"Experts: {sentence}"):
        Experts(4, 32, 16, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x, i, w: (x.float(), i, w), r"hidden_states must be bf16\[..., 256\]; got torch.float32\[5, 256\]"),
        (lambda x, i, w: (x[:, 1:], i, w), r"hidden_states must be bf16\[..., 256\]"),
        (lambda x, i, w: (x, i[1:], w), r"top_k_index must be \[5, topk\], one row a token; got \[4, 3\]"),
        (lambda x, i, w: (x, i, w[:, 1:]), r"top_k_weights must be \[5, topk\], one row a token; got \[5, 2\]"),
        (lambda x, i, w: (x, i.float(), w), "top_k_index must be integers and top_k_weights floats"),
    ],
)
def test_misuse_of_a_call_is_answered_with_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=f"Experts: {sentence}"):
        layer_of("bf16")(*change(*inputs_of(5)))
