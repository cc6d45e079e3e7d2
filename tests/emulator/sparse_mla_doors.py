"""The doors of sparse_mla_attention: arguments, problems and what is right, as doors.py has them for products."""

import ctypes

import numpy as np

from tests.emulator.doors import Array, Bytes, Lab, Tensor2, bf16_bits, bf16_values
from tests.emulator.indexer_doors import Tensor1

_I64 = ctypes.c_int64
DIM, V_DIM, SCALE = 576, 512, 0.6


class Tensor3(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", _I64 * 3), ("stride", _I64 * 3)]


class ForwardArgs(ctypes.Structure):
    _fields_ = [
        ("q", Tensor3),
        ("kv", Tensor2),
        ("indices", Tensor2),
        ("scale", ctypes.c_float),
        ("topk_length", Tensor1),
        ("sink", Tensor1),
        ("out", Tensor3),
        ("lse", Tensor2),
        ("probabilities", Tensor2),
        ("workspace", Bytes),
        ("is_paged", ctypes.c_bool),
        ("byte_cache", Tensor3),
        ("bf16_cache", Tensor3),
        ("block_table", Tensor2),
        ("sequences", Tensor1),
    ]


class BackwardArgs(ctypes.Structure):
    _fields_ = [
        ("d_out", Tensor3),
        ("d_lse", Tensor2),
        ("q", Tensor3),
        ("kv", Tensor2),
        ("indices", Tensor2),
        ("out", Tensor3),
        ("lse", Tensor2),
        ("scale", ctypes.c_float),
        ("topk_length", Tensor1),
        ("sink", Tensor1),
        ("d_q", Tensor3),
        ("d_kv", Tensor2),
        ("d_sink", Tensor1),
        ("workspace", Bytes),
    ]


def _tensor(array: Array):
    strides = [int(np.prod(array.shape[d + 1 :])) for d in range(len(array.shape))]
    return {1: Tensor1, 2: Tensor2, 3: Tensor3}[len(array.shape)](array.address, array.shape, tuple(strides))


class SparseMlaLab(Lab):
    """One door, forward or backward."""

    def _problem(self, tokens, heads, keys, topk):
        """Inputs as bf16 bits and i32; in f64 what they mean, scores and probabilities."""
        random = np.random.default_rng(3)
        q = bf16_bits(random.standard_normal((tokens, heads, DIM)))
        kv = bf16_bits(0.1 * random.standard_normal((keys, DIM)))
        indices = random.integers(-keys // 3, keys + keys // 3, (tokens, topk)).astype(np.int32)
        present = (indices >= 0) & (indices < keys)
        rows = np.where(present[..., None], bf16_values(kv).astype(np.float64)[indices.clip(0, keys - 1)], 0)
        scores = SCALE * np.einsum("thd,tjd->thj", bf16_values(q).astype(np.float64), rows)
        scores = np.where(present[:, None], scores, -np.inf)
        most = scores.max(axis=2, keepdims=True)
        lse = most[..., 0] + np.log(np.exp(scores - most).sum(2))
        return random, q, kv, indices, present, rows, np.exp(scores - lse[..., None]), lse

    def sparse_mla_attention(self, _, tokens, heads, keys, topk, sms=132, seed=0, schedule="fair"):
        _, q, kv, indices, _, rows, probabilities, lse = self._problem(tokens, heads, keys, topk)
        inputs = [Array(q, "q"), Array(kv, "kv"), Array(indices, "indices")]
        out = Array(np.full((tokens, heads, V_DIM), 7, np.uint16), "out", written=False)
        lses = Array(np.full((tokens, heads), 7, np.float32), "lse", written=False)
        args = ForwardArgs(*map(_tensor, inputs), scale=SCALE, out=_tensor(out), lse=_tensor(lses))
        outcome = self._call(args, 0, sms, schedule, seed, out)
        if outcome.out is not None:
            values = bf16_values(outcome.out).reshape(tokens, heads, V_DIM)
            outcome.out = np.concatenate((values, lses.values[..., None]), axis=2)
        exact = np.einsum("thj,tjd->thd", probabilities, rows[..., :V_DIM])
        bound = 2.0**-7 * np.einsum("thj,tjd->thd", probabilities, abs(rows[..., :V_DIM]))
        for array in (*inputs, out, lses):
            array.free()
        join = [np.concatenate((x, y[..., None]), axis=2) for x, y in ((exact, lse), (bound, 0 * lse + 1e-5))]
        return outcome, *join

    def sparse_mla_decode(self, _, tokens, heads, pages, topk, sms=132, seed=0, schedule="fair"):
        """The fast schedule over a cache of bytes, by slot."""
        random = np.random.default_rng(3)
        q = bf16_bits(random.standard_normal((tokens, heads, DIM)))
        codes = random.integers(0, 0x60, (pages, 64, V_DIM)) | 128 * random.integers(0, 2, (pages, 64, V_DIM))
        scales = (0.1 * 2.0 ** -random.uniform(2, 4, (pages, 64, 4))).astype(np.float32)
        rope = bf16_bits(0.1 * random.standard_normal((pages, 64, DIM - V_DIM)))
        parts = codes.astype(np.uint8), scales.view(np.uint8), rope.view(np.uint8)
        cache = np.concatenate([part.reshape(pages, 64, -1) for part in parts], axis=2)
        exponent, mantissa = codes % 128 // 8, codes % 8
        sizes = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
        latent = np.where(codes < 128, sizes, -sizes) * scales.astype(np.float64).repeat(128, axis=2)
        wide = np.concatenate((latent, bf16_values(rope).reshape(rope.shape)), axis=2).reshape(-1, DIM)
        slots = pages * 64
        indices = random.integers(-slots // 3, slots + slots // 3, (tokens, topk)).astype(np.int32)
        present = (indices >= 0) & (indices < slots)
        rows = np.where(present[..., None], wide[indices.clip(0, slots - 1)], 0)
        scores = SCALE * np.einsum("thd,tjd->thj", bf16_values(q).astype(np.float64), rows)
        scores = np.where(present[:, None], scores, -np.inf)
        most = scores.max(axis=2, keepdims=True)
        lse = most[..., 0] + np.log(np.exp(scores - most).sum(2))
        p = np.exp(scores - lse[..., None])

        given = [Array(q, "q"), Array(indices, "indices"), Array(cache, "cache")]
        size = tokens * -(-topk // 64) * heads * (V_DIM + 2) * 4 if tokens <= 16 else 0
        workspace = Array(np.zeros(size, np.uint8), "workspace", written=False)
        out = Array(np.full((tokens, heads, V_DIM), 7, np.uint16), "out", written=False)
        lses = Array(np.full((tokens, heads), 7, np.float32), "lse", written=False)
        args = ForwardArgs(scale=SCALE, out=_tensor(out), lse=_tensor(lses), is_paged=True)
        args.q, args.indices, args.byte_cache = map(_tensor, given)
        args.workspace = Bytes(workspace.address, (size,), (1,))
        outcome = self._call(args, 0, sms, schedule, seed, out)
        if outcome.out is not None:
            values = bf16_values(outcome.out).reshape(tokens, heads, V_DIM)
            outcome.out = np.concatenate((values, lses.values[..., None]), axis=2)
        for array in (*given, workspace, out, lses):
            array.free()
        exact = np.einsum("thj,tjd->thd", p, rows[..., :V_DIM])
        bound = 2.0**-7 * np.einsum("thj,tjd->thd", p, abs(rows[..., :V_DIM]))
        join = [np.concatenate((x, y[..., None]), axis=2) for x, y in ((exact, lse), (bound, 0 * lse + 1e-5))]
        return outcome, *join

    def sparse_mla_attention_bwd(self, _, tokens, heads, keys, topk, sms=132, seed=0, schedule="fair"):
        random, q, kv, indices, present, rows, p, lse = self._problem(tokens, heads, keys, topk)
        out, d_out = (bf16_bits(s * random.standard_normal((tokens, heads, V_DIM))) for s in (0.1, 1))
        d_lse = random.standard_normal((tokens, heads)).astype(np.float32)
        given = {"d_out": d_out, "d_lse": d_lse, "q": q, "kv": kv, "indices": indices, "out": out}
        arrays = {n: Array(v, n) for n, v in (given | {"lse": lse.astype(np.float32)}).items()}
        d_q = Array(np.full((tokens, heads, DIM), 7, np.uint16), "d_q", written=False)
        d_kv = Array(np.full((keys, DIM), 7, np.uint16), "d_kv", written=False)
        size = keys * (8 * DIM + 8) + 4 * tokens * heads + 32
        workspace = Array(np.zeros(size, np.uint8), "workspace", written=False)
        args = BackwardArgs(**{n: _tensor(a) for n, a in arrays.items()}, scale=SCALE)
        args.d_q, args.d_kv = _tensor(d_q), _tensor(d_kv)
        args.workspace = Bytes(workspace.address, (size,), (1,))
        outcome = self._call(args, 0, sms, schedule, seed, d_kv)
        if outcome.out is not None:
            outcome.out = np.concatenate([bf16_values(a.values).reshape(-1, DIM) for a in (d_q, d_kv)])

        wide = {n: bf16_values(v).astype(np.float64) for n, v in (("q", q), ("out", out), ("d_out", d_out))}
        delta = (wide["out"] * wide["d_out"]).sum(2)
        d_p = np.einsum("thd,tjd->thj", wide["d_out"], rows[..., :V_DIM])
        d_scores = SCALE * p * (d_p - delta[..., None] + d_lse[..., None])

        def gradients(d_scores, p, q, rows, d_out):
            found = np.zeros((keys, DIM))
            parts = np.einsum("thj,thd->tjd", d_scores, q)
            parts[..., :V_DIM] += np.einsum("thj,thd->tjd", p, d_out)
            np.add.at(found, indices[present], parts[present])
            return np.concatenate((np.einsum("thj,tjd->thd", d_scores, rows).reshape(-1, DIM), found))

        exact = gradients(d_scores, p, wide["q"], rows, wide["d_out"])
        bound = gradients(abs(d_scores), p, abs(wide["q"]), abs(rows), abs(wide["d_out"]))
        for array in (*arrays.values(), d_q, d_kv, workspace):
            array.free()
        return outcome, exact, 2.0**-6 * bound + 1e-6
