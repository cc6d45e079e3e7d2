"""The doors of the indexer's kernels: arguments, problems and what is right, as doors.py has them for products."""

import ctypes

import numpy as np

from tests.emulator.doors import Array, Bytes, Lab, Tensor2, bf16_bits, bf16_values, e4m3_values

_I64 = ctypes.c_int64
HEADS, DIM, PAGE = 32, 128, 64


class Tensor1(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", _I64 * 1), ("stride", _I64 * 1)]


class Indexer3(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("is_e4m3", ctypes.c_bool), ("shape", _I64 * 3), ("stride", _I64 * 3)]


class Indexer2(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("is_e4m3", ctypes.c_bool), ("shape", _I64 * 2), ("stride", _I64 * 2)]


class IndexerOperands(ctypes.Structure):
    _fields_ = [
        ("q", Indexer3),
        ("weights", Tensor2),
        ("windows", Tensor2),
        ("is_paged", ctypes.c_bool),
        ("k", Indexer2),
        ("k_scales", Tensor1),
        ("cache", Tensor2),
        ("block_table", Tensor2),
        ("sequences", Tensor1),
    ]


class IndexerLogitsArgs(ctypes.Structure):
    _fields_ = [("operands", IndexerOperands), ("out", Tensor2), ("workspace", Bytes)]


class IndexerTopkArgs(ctypes.Structure):
    _fields_ = [
        ("operands", IndexerOperands),
        ("physical", ctypes.c_bool),
        ("indices", Tensor2),
        ("margins", Tensor1),
        ("fingerprints", Tensor1),
        ("workspace", Bytes),
    ]


class Tensor3(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("shape", _I64 * 3), ("stride", _I64 * 3)]


class IndexerLogitsBwdArgs(ctypes.Structure):
    _fields_ = [
        ("operands", IndexerOperands),
        ("d_out", Tensor2),
        ("d_q", Tensor3),
        ("d_k", Tensor2),
        ("d_weights", Tensor2),
        ("workspace", Bytes),
    ]


def _matrix(array: Array) -> Tensor2:
    return Tensor2(array.address, array.shape, (array.shape[1], 1))


class IndexerLab(Lab):
    """One door of an indexer's kernel."""

    def _operands(self, tokens: int, keys: int, paged: bool):
        """(operands, arrays to free, scores in f64, a bound on their errors)."""
        random = np.random.default_rng(1)

        # small magnitudes, so that sums in f32 are nearly exact
        def values(*shape):
            signs = random.choice(np.array([0, 128], np.uint8), shape)
            return random.integers(0, 0x50, shape, dtype=np.uint8) | signs

        q, k = values(tokens, HEADS, DIM), values(keys, DIM)
        weights = random.standard_normal((tokens, HEADS)).astype(np.float32)
        scales = random.uniform(0.5, 2, keys).astype(np.float32)
        windows = np.sort(random.integers(0, keys + 1, (tokens, 2)), axis=1).astype(np.int32)
        windows[::2] = [0, keys]
        windows[16:] = [70, 300]  # a block that leaves tiles out at both ends
        table = e4m3_values()
        products = np.einsum("thd,sd->ths", table[q], table[k])
        terms = weights[:, :, None].astype(np.float64) * np.maximum(products, 0) * scales
        at = np.arange(keys)
        inside = (at >= windows[:, :1]) & (at < windows[:, 1:])
        exact = np.where(inside, terms.sum(1), -1e30)
        bound = np.where(inside, (abs(terms).sum(1) + 1) * 2.0**-18, 0)
        operands = IndexerOperands(is_paged=paged)
        arrays = {"q": Array(q, "q"), "weights": Array(weights, "weights"), "windows": Array(windows, "windows")}
        operands.q = Indexer3(arrays["q"].address, True, (tokens, HEADS, DIM), (HEADS * DIM, DIM, 1))
        operands.weights, operands.windows = _matrix(arrays["weights"]), _matrix(arrays["windows"])
        if paged:
            pages = keys // PAGE
            order = random.permutation(pages)
            cache = np.empty((pages, PAGE * (DIM + 4)), np.uint8)
            cache[order, : PAGE * DIM] = k.reshape(pages, -1)
            cache[order, PAGE * DIM :] = scales.view(np.uint8).reshape(pages, -1)
            arrays["cache"] = Array(cache, "cache")
            arrays["block_table"] = Array(np.stack([order, order]).astype(np.int32), "block_table")
            arrays["sequences"] = Array((np.arange(tokens) // 3 % 2).astype(np.int32), "sequences")
            operands.cache, operands.block_table = _matrix(arrays["cache"]), _matrix(arrays["block_table"])
            operands.sequences = Tensor1(arrays["sequences"].address, (tokens,), (1,))
        else:
            arrays |= {"k": Array(k, "k"), "k_scales": Array(scales, "k_scales")}
            operands.k = Indexer2(arrays["k"].address, True, (keys, DIM), (DIM, 1))
            operands.k_scales = Tensor1(arrays["k_scales"].address, (keys,), (1,))
        return operands, list(arrays.values()), exact, bound

    def indexer_logits(self, span_tiles, tokens, keys, sms, paged=False, seed=0, schedule="fair"):
        operands, arrays, exact, bound = self._operands(tokens, keys, paged)
        out = Array(np.full((tokens, keys), 7.0, np.float32), "out", written=False)
        args = IndexerLogitsArgs(operands=operands, out=_matrix(out))
        outcome = self._call(args, span_tiles, sms, schedule, seed, out)
        if outcome.out is not None:
            outcome.out[np.isneginf(outcome.out)] = -1e30
        for array in (*arrays, out):
            array.free()
        return outcome, np.float32(exact), bound

    def indexer_topk(self, splits, tokens, keys, topk, sms, seed=0, schedule="fair"):
        operands, arrays, exact, _ = self._operands(tokens, keys, False)
        indices = Array(np.full((tokens, topk), 7, np.int32), "indices", written=False)
        workspace = Array(np.zeros(1 << 20, np.uint8), "workspace", written=False)
        args = IndexerTopkArgs(operands=operands, indices=_matrix(indices))
        args.workspace = Bytes(workspace.address, (1 << 20,), (1,))
        outcome = self._call(args, splits, sms, schedule, seed, indices)
        best = np.sort(np.argsort(-exact, axis=1, kind="stable")[:, :topk], axis=1)
        kept = np.take_along_axis(exact, best, 1) > -1e29
        right = np.where(
            np.sort(np.where(kept, best, keys), axis=1) < keys, np.sort(np.where(kept, best, keys), axis=1), -1
        )
        for array in (*arrays, indices, workspace):
            array.free()
        return outcome, right, 0

    def indexer_logits_bwd(self, _, tokens, keys, sms=132, seed=0, schedule="fair"):
        random = np.random.default_rng(2)
        q, k = (bf16_bits(random.standard_normal(shape)) for shape in ((tokens, HEADS, DIM), (keys, DIM)))
        weights = random.standard_normal((tokens, HEADS)).astype(np.float32)
        windows = np.sort(random.integers(0, keys + 1, (tokens, 2)), axis=1).astype(np.int32)
        windows[::2] = [0, keys]
        g = random.standard_normal((tokens, keys)).astype(np.float32)
        given = {"q": q, "weights": weights, "windows": windows, "k": k, "d_out": g}
        arrays = {name: Array(values, name) for name, values in given.items()}
        made = {"d_q": np.uint16, "d_k": np.uint16, "d_weights": np.float32}
        shapes = {"d_q": q.shape, "d_k": k.shape, "d_weights": weights.shape}
        made = {name: Array(np.full(shapes[name], 7, dtype), name, written=False) for name, dtype in made.items()}
        args = IndexerLogitsBwdArgs(d_out=_matrix(arrays["d_out"]), d_k=_matrix(made["d_k"]))
        args.d_weights = _matrix(made["d_weights"])
        args.d_q = Tensor3(made["d_q"].address, q.shape, (HEADS * DIM, DIM, 1))
        operands = args.operands
        operands.q = Indexer3(arrays["q"].address, False, q.shape, (HEADS * DIM, DIM, 1))
        operands.k = Indexer2(arrays["k"].address, False, k.shape, (DIM, 1))
        operands.weights, operands.windows = _matrix(arrays["weights"]), _matrix(arrays["windows"])
        outcome = self._call(args, 0, sms, schedule, seed, made["d_weights"])
        if outcome.out is not None:
            outcome.out = np.concatenate(
                [bf16_values(made[n].values).ravel() for n in ("d_q", "d_k")] + [outcome.out.ravel()]
            )
        x, y = bf16_values(q).astype(np.float64), bf16_values(k).astype(np.float64)
        products = np.einsum("thd,sd->ths", x, y)
        at = np.arange(keys)
        g = np.where((at >= windows[:, :1]) & (at < windows[:, 1:]), g, 0)[:, None]
        a = np.where(products > 0, g * weights[:, :, None], 0)

        def gradients(a, x, y, g):
            d_q, d_k = np.einsum("ths,sd->thd", a, y), np.einsum("ths,thd->sd", a, x)
            return np.concatenate([d.ravel() for d in (d_q, d_k, (np.maximum(products, 0) * g).sum(2))])

        exact, bound = gradients(a, x, y, g), gradients(abs(a), abs(x), abs(y), abs(g))
        for array in (*arrays.values(), *made.values()):
            array.free()
        return outcome, exact, 2.0**-7 * bound + 1e-4
