import pytest
import torch

from glm5_ops import reference, sparse_mla_attention
from glm5_ops.model.dense_mla import dense_mla_attention, dense_targets, window_indices
from glm5_ops.model.indexer_loss import blockwise_indexer_loss
from glm5_ops.workloads._compare import LARGEST_COSINE_DIFFERENCE, cosine_difference

TOKENS, KEYS, HEADS, V_DIM, SCALE = 37, 61, 3, 24, 0.2


def _inputs(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(TOKENS, HEADS, 40, generator=generator).to(dtype)
    kv = torch.randn(KEYS, 40, generator=generator).to(dtype)
    ends = torch.arange(KEYS - TOKENS, KEYS) + 1
    starts = (ends - 30).clamp(min=0)
    ends[5] = starts[5]  # a token without a key
    return q, kv, torch.stack([starts, ends], 1).int(), SCALE, V_DIM


@pytest.mark.parametrize("block", [1, 8, 37, 1000])
def test_has_the_bits_of_all_indices(block):
    q, kv, windows, scale, v_dim = _inputs()
    sink = torch.tensor([0.5, -1, 2])
    every = torch.arange(KEYS, dtype=torch.int32).repeat(TOKENS, 1)
    inside = (every >= windows[:, :1]) & (every < windows[:, 1:])
    out, lse, _ = sparse_mla_attention(q, kv, torch.where(inside, every, KEYS), scale, v_dim, None, sink)
    got = dense_mla_attention(q, kv, windows, scale, v_dim, sink, block=block)
    assert torch.equal(got[0], out) and torch.equal(got[1], lse)
    assert (out[5] == 0).all() and (lse[5] == float("-inf")).all()


@pytest.mark.parametrize("block", [8, 37])
def test_is_dense_attention_and_so_is_its_gradient(block):
    q, kv, windows, scale, v_dim = _inputs()
    every = torch.arange(KEYS)
    mask = (every >= windows[:, :1]) & (every < windows[:, 1:])
    ours = [t.clone().requires_grad_() for t in (q, kv)]
    exact = [t.double().requires_grad_() for t in (q, kv)]
    weights = torch.randn(TOKENS, HEADS, v_dim, generator=torch.Generator().manual_seed(4))
    out, _ = dense_mla_attention(*ours, windows, scale, v_dim, block=block)
    scores = torch.einsum("thd,sd->ths", *exact) * scale
    softmax = torch.nan_to_num(scores.masked_fill(~mask[:, None], -torch.inf).softmax(2))
    expected = softmax @ exact[1][:, :v_dim]
    assert cosine_difference(out.detach(), expected.detach()) < LARGEST_COSINE_DIFFERENCE
    (out * weights).sum().backward()
    (expected * weights.bfloat16().double()).sum().backward()
    for leaf, truth in zip(ours, exact, strict=True):
        # blocks round their share of d_kv to bf16
        assert cosine_difference(leaf.grad, truth.grad) < 2 * LARGEST_COSINE_DIFFERENCE
    if block == TOKENS:
        whole = [t.clone().requires_grad_() for t in (q, kv)]
        (sparse_mla_attention(*whole, window_indices(windows, KEYS), scale, v_dim)[0] * weights).sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, whole, strict=True))


def test_no_tokens():
    q, kv, windows, scale, v_dim = _inputs()
    out, lse = dense_mla_attention(q[:0], kv, windows[:0], scale, v_dim)
    assert out.shape == (0, HEADS, v_dim) and lse.shape == (0, HEADS)


def test_targets_of_the_warm_up():
    q, kv, windows, scale, v_dim = _inputs()
    target_of = dense_targets(q, kv, windows, scale, v_dim)
    exact = dense_targets(q.double(), kv.double(), windows, scale, v_dim, ops=reference)
    torch.testing.assert_close(target_of(3, 20).double(), exact(3, 20), rtol=1e-3, atol=1e-5)
    assert torch.equal(target_of(3, 20)[7:8], target_of(10, 11))

    generator = torch.Generator().manual_seed(6)
    index_q, index_k = torch.randn(TOKENS, 4, 16, generator=generator), torch.randn(KEYS, 16, generator=generator)
    weights = torch.randn(TOKENS, 4, generator=generator) / 8
    operands = index_q.bfloat16(), index_k.bfloat16(), weights, windows
    losses = [blockwise_indexer_loss(*operands, target_of, block=block, reduction="sum") for block in (10, 37)]
    assert torch.equal(target_of(5, 6), torch.zeros(1, KEYS)) and losses[0] > 0
    torch.testing.assert_close(*losses)


def test_misuse_is_answered_with_a_sentence():
    q, kv, windows, scale, v_dim = _inputs()
    with pytest.raises(ValueError, match=r"dense_mla_attention: windows must be \[tokens, 2\] where tokens is 37; got"):
        dense_mla_attention(q, kv, windows[1:], scale, v_dim)
    with pytest.raises(ValueError, match="dense_mla_attention: block must be at least 1; got 0"):
        dense_mla_attention(q, kv, windows, scale, v_dim, block=0)
    with pytest.raises(ValueError, match=r"dense_targets: windows must be \[tokens, 2\]"):
        dense_targets(q, kv, windows[:, 0], scale)
