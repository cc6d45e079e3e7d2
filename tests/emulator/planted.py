"""Faults planted in the library's kernels, each with the check that must speak.

`checks` names the checks of the emulator that are right to speak, `values` where only the result shows it.
"""

from dataclasses import dataclass, field

from tests.emulator.doors import find_variant

FP8 = "cuda/gemm_fp8.cuh"
GEMM = "cuda/gemm_bf16.cuh"
RING = "cuda/pipeline.cuh"
WGMMA = "cuda/ptx/wgmma.cuh"
STORE = "cuda/tile_store.cuh"
SCORES = "cuda/indexer_scores.cuh"
LOGITS = "ops/indexer_logits/kernel_sm90.cuh"
TOPK = "ops/indexer_topk/kernel_sm90.cuh"
CANDIDATES = "cuda/topk_candidates.cuh"
LOGITS_BACKWARD = "ops/indexer_logits/bwd_sm90.cu"
MLA = "cuda/sparse_mla.cuh"
MLA_FORWARD = "ops/sparse_mla_attention/sm90.cu"
MLA_DECODE = "ops/sparse_mla_attention/decode_sm90.cu"
MLA_BACKWARD = "ops/sparse_mla_attention/bwd_sm90.cu"


@dataclass(frozen=True)
class Planted:
    name: str
    op: str
    variant: int
    edits: tuple
    checks: frozenset
    problem: dict = field(default_factory=dict)
    schedules: tuple = (("fair", 0), ("late", 0), ("random", 1), ("random", 2))

    def __str__(self):
        return self.name


FP8_ROWS = find_variant("fp8_gemm", "rows", 128, 128, 1)
FP8_CLUSTER = find_variant("fp8_gemm", "rows", 128, 128, 2)
FP8_SWAPPED = find_variant("fp8_gemm", "swap_ab", 64, 32)
BF16_ROWS = find_variant("gemm", "rows", 128, 128, 1)

# More k groups than stages (6), more tiles than blocks, ragged in every direction.
RAGGED = {"m": 200, "n": 300, "k": 1300, "sms": 2}
RAGGED_BF16 = {"m": 200, "n": 300, "k": 712, "sms": 2}
SWAPPED = {"m": 30, "n": 200, "k": 128 * 40, "sms": 1}
BY_HAND = {"m": 70, "n": 90, "k": 515, "sms": 1, "pad": 1}
# More tiles than stages (12), several items for each block, ragged in tokens and keys.
DENSE_KEYS = {"tokens": 21, "keys": 64 * 15 + 5, "sms": 2}
PAGED_KEYS = {"tokens": 11, "keys": 64 * 15, "sms": 2, "paged": True}
BEST_KEYS = {"tokens": 11, "keys": 64 * 9 + 5, "topk": 40, "sms": 2}
# More tiles of keys and more tokens than stages (2).
GIVEN_SCORES = {"tokens": 7, "keys": 64 * 3 + 5}
# More tiles than stages (2), absent keys among the others, heads that do not fill their tile.
CHOSEN_KEYS = {"tokens": 2, "heads": 12, "keys": 90, "topk": 64 * 4 + 10}
# The same with more tokens than have their tiles dealt out, and with so few.
CACHED_KEYS = {"tokens": 17, "heads": 3, "pages": 2, "topk": 64 * 2 + 10}
TILES_APART = {"tokens": 2, "heads": 12, "pages": 2, "topk": 64 * 2 + 10}


def _fp8(name, checks, *edits, variant=FP8_ROWS, problem=RAGGED, **more):
    return Planted(name, "fp8_gemm", variant, edits, frozenset(checks.split()), problem, **more)


def _gemm(name, checks, *edits, variant=BF16_ROWS, problem=RAGGED_BF16, **more):
    return Planted(name, "gemm", variant, edits, frozenset(checks.split()), problem, **more)


def _logits(name, checks, *edits, variant=5, problem=DENSE_KEYS, **more):
    return Planted(name, "indexer_logits", variant, edits, frozenset(checks.split()), problem, **more)


def _topk(name, checks, *edits, variant=1, problem=BEST_KEYS, **more):
    return Planted(name, "indexer_topk", variant, edits, frozenset(checks.split()), problem, **more)


def _logits_bwd(name, checks, *edits, **more):
    return Planted(name, "indexer_logits_bwd", 0, edits, frozenset(checks.split()), GIVEN_SCORES, **more)


def _attention(name, checks, *edits, **more):
    return Planted(name, "sparse_mla_attention", 0, edits, frozenset(checks.split()), CHOSEN_KEYS, **more)


def _decode(name, checks, *edits, problem=CACHED_KEYS, **more):
    return Planted(name, "sparse_mla_decode", 0, edits, frozenset(checks.split()), problem, **more)


def _attention_bwd(name, checks, *edits, **more):
    return Planted(name, "sparse_mla_attention_bwd", 0, edits, frozenset(checks.split()), CHOSEN_KEYS, **more)


_FEW_STAGES = (SCORES, "kE4m3 ? 12 : 4;", "kE4m3 ? 2 : 4;")  # so that they are used again at once
_FACTORS = "    const IndexerFactors<T> factors(smem, here.stage, me);\n"
_KEYS_BACK = "    smem.key_ring.template release<1>(here, me.lane);\n"
_QUERIES_BACK = "    if (reaches) {\n      smem.query_ring.template release<1>(query_at, me.lane);\n"
_STEP_AHEAD = "  ptx::wgmma_wait_group<1>();\n  finish<T>(total, part, Scales<T>(smem, here.stage"
_STEP_LAST = "  ptx::wgmma_wait_group<0>();\n  finish<T>(total, part, Scales<T>(smem, at.stage, slab_row<T>(me, 0)"
_START_TOGETHER = "\n  cuda::sync_cluster<T::kCluster>();\n"
_CLUSTER_END = "  if constexpr (T::kCluster > 1) cuda::sync_cluster<T::kCluster>();\n"

FAULTS = [
    # ---- starting and ending
    _fp8("barriers initialised without a fence", "proxy", (FP8, "    ptx::fence_mbarrier_init();\n", "")),
    _fp8("no barrier after the initialisation", "race mbarrier uninitialised", (FP8, _START_TOGETHER, "\n")),
    _fp8(
        "a cluster that starts with a barrier of one block",
        "race mbarrier uninitialised",
        (FP8, _START_TOGETHER, "\n  cuda::sync_cluster<1>();\n"),
        variant=FP8_CLUSTER,
    ),
    _fp8("a cluster whose blocks exit alone", "cluster deadlock", (FP8, _CLUSTER_END, ""), variant=FP8_CLUSTER),
    _fp8(
        "one arrival too many expected",
        "deadlock",
        (FP8, "T::kConsumerWarps * T::kCluster);", "T::kConsumerWarps * T::kCluster + 1);"),
    ),
    _fp8(
        "one arrival too few expected",
        "mbarrier race operands",
        (FP8, "T::kConsumerWarps * T::kCluster);", "T::kConsumerWarps * T::kCluster - 1);"),
    ),
    # ---- phases
    _fp8(
        "the consumer waits for the wrong phase",
        "race uninitialised operands deadlock",
        (RING, "wait(&full[at.stage], at.parity); }", "wait(&full[at.stage], at.parity ^ 1); }"),
    ),
    _fp8(
        "the producer waits for the wrong phase",
        "deadlock",
        (RING, "wait(&empty[at.stage], at.parity ^ 1); }", "wait(&empty[at.stage], at.parity); }"),
    ),
    _fp8("the parity never turns", "race operands deadlock mbarrier", (RING, "      parity ^= 1;\n", "")),
    _fp8(
        "the consumer does not wait for the copies",
        "race uninitialised operands",
        (
            RING,
            "void wait_full(const Position& at) { wait(&full[at.stage], at.parity); }",
            "void wait_full(const Position&) {}",
        ),
    ),
    _fp8(
        "the producer does not wait for the consumers",
        "race operands mbarrier",
        (
            RING,
            "void wait_empty(const Position& at) { wait(&empty[at.stage], at.parity ^ 1); }",
            "void wait_empty(const Position&) {}",
        ),
    ),
    # ---- bytes
    _fp8(
        "16 bytes too many announced",
        "deadlock",
        (FP8, "arrive_full(at, T::kBytesPerStage)", "arrive_full(at, T::kBytesPerStage + 16)"),
    ),
    _fp8(
        "16 bytes too few announced",
        "mbarrier race operands",
        (FP8, "arrive_full(at, T::kBytesPerStage)", "arrive_full(at, T::kBytesPerStage - 16)"),
    ),
    # ---- releases
    _fp8(
        "a stage is never released",
        "deadlock",
        (FP8, "  if (releases && !T::kRightVector) smem.ring.template release<T::kCluster>(at, me.lane);\n", ""),
    ),
    _fp8(
        "a stage is released twice",
        "mbarrier race operands deadlock",
        (
            RING,
            "if (lane == 0) ptx::mbarrier_arrive(&empty[at.stage]);",
            "if (lane < 2) ptx::mbarrier_arrive(&empty[at.stage]);",
        ),
    ),
    _fp8(
        "a stage is released while wgmma reads it",
        "race operands wgmma",
        (FP8, _STEP_AHEAD, _STEP_AHEAD.replace("<1>", "<2>")),
    ),
    _fp8(
        "a stage is released before its scales are read",
        "race",
        (FP8, "if (releases && !T::kRightVector)", "if (releases)"),
        (FP8, "if (releases && T::kRightVector)", "if (false)"),
        variant=FP8_SWAPPED,
        problem=SWAPPED,
    ),
    _fp8(
        "a cluster releases only its own stage",
        "race operands mbarrier deadlock",
        (
            RING,
            "if (lane < kBlocks) ptx::mbarrier_arrive_cluster(&empty[at.stage], lane);",
            "if (lane < kBlocks) ptx::mbarrier_arrive(&empty[at.stage]);",
        ),
        variant=FP8_CLUSTER,
    ),
    _fp8(
        "no copies for the last group",
        "deadlock",
        (
            FP8,
            "for (int group = 0; group < args.groups; ++group, at.advance()) {\n      smem.ring.wait_empty",
            "for (int group = 0; group < args.groups - 1; ++group, at.advance()) {\n      smem.ring.wait_empty",
        ),
    ),
    # ---- lanes of one warp
    _fp8(
        "a lane releases a stage before the others have read it",
        "race",
        (RING, "    __syncwarp();\n    if constexpr (kBlocks == 1) {", "    if constexpr (kBlocks == 1) {"),
    ),
    _fp8(
        "lanes read a tile that others still write",
        "race",
        (STORE, "  __syncwarp();\n#pragma unroll\n  for (int round", "#pragma unroll\n  for (int round"),
    ),
    _fp8(
        "lanes write over a tile that others still read",
        "race",
        (STORE, "vector[round], live[round]);\n  }\n  __syncwarp();\n", "vector[round], live[round]);\n  }\n"),
    ),
    _gemm(
        "a lane announces what others still copy by hand",
        "race",
        (GEMM, "before wgmma reads them\n    __syncwarp();\n", "before wgmma reads them\n"),
        problem=BY_HAND,
    ),
    # ---- wgmma
    _fp8("the last product is read before it has come", "wgmma", (FP8, _STEP_LAST, _STEP_LAST.split("\n", 1)[1])),
    _fp8("a product is read one step too early", "wgmma", (FP8, _STEP_AHEAD, _STEP_AHEAD.split("\n", 1)[1])),
    _gemm(
        "the sums are stored before the last product has come",
        "wgmma",
        (GEMM, "  ptx::wgmma_wait_group<0>();\n", ""),
    ),
    _fp8("no wgmma.fence", "wgmma", (FP8, "  ptx::wgmma_fence();\n", "")),
    _fp8("no wgmma.commit_group", "race operands wgmma", (FP8, "  ptx::wgmma_commit_group();\n", "")),
    _gemm("a stage is given back at once", "race operands wgmma", (GEMM, "    ptx::wgmma_wait_group<1>();\n", "")),
    _gemm(
        "no proxy fence after copying by hand",
        "proxy",
        (GEMM, "    ptx::fence_proxy_async_shared();  // each lane's writes, before wgmma reads them\n", ""),
        problem=BY_HAND,
    ),
    _fp8(
        "the swizzle of a descriptor is wrong",
        "values uninitialised bounds",
        (
            WGMMA,
            "(u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16)",
            "(u64{2} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16)",
        ),
    ),
    _fp8(
        "the stride of a descriptor is wrong",
        "values",
        (
            WGMMA,
            "(u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16)",
            "(u64{1} << 62) | (u64{512 >> 4} << 32) | (u64{1} << 16)",
        ),
    ),
    _fp8(
        "the steps along k are too long",
        "values race",
        (WGMMA, "kDescriptorStepK32 = 32 >> 4", "kDescriptorStepK32 = 64 >> 4"),
    ),
    _gemm(
        "the swizzle of a copy by hand is wrong",
        "values",
        (GEMM, "(piece ^ r % 8) * 16", "(piece ^ r % 4) * 16"),
        problem=BY_HAND,
    ),
    # ---- copies and tensor maps
    _fp8(
        "the swizzle of a tensor map is wrong",
        "driver",
        ("ops/fp8_gemm/sm90.cu", "CU_TENSOR_MAP_SWIZZLE_128B", "CU_TENSOR_MAP_SWIZZLE_64B"),
    ),
    _fp8(
        "no swizzle in the tensor map",
        "values driver",
        ("ops/fp8_gemm/sm90.cu", "CU_TENSOR_MAP_SWIZZLE_128B", "CU_TENSOR_MAP_SWIZZLE_NONE"),
    ),
    _fp8(
        "a copy's coordinate is off by one row",
        "values",
        (FP8, "&args.right, k, corner.right_row, corner.expert", "&args.right, k, corner.right_row + 1, corner.expert"),
    ),
    _fp8(
        "the multicast mask names a block too many",
        "cluster",
        (FP8, "(1 << T::kCluster) - 1);", "(2 << T::kCluster) - 1);"),
        variant=FP8_CLUSTER,
    ),
    _fp8(
        "both blocks load the same half",
        "values race uninitialised deadlock",
        (FP8, "tensor_2d_multicast(smem.left[stage][row]", "tensor_2d_multicast(smem.left[stage][0]"),
        variant=FP8_CLUSTER,
    ),
    # ---- the epilogue
    _fp8("a row too many is written", "bounds", (STORE, "i < out.m ? out.n - j : 0", "i <= out.m ? out.n - j : 0")),
    _fp8(
        "a column too many is written",
        "bounds values",
        (STORE, "i < out.m ? out.n - j : 0", "i < out.m ? out.n - j + 1 : 0"),
    ),
    # ---- the indexer's scores
    _logits(
        "a stage of keys is given back while wgmma reads it",
        "race operands wgmma",
        (
            SCORES,
            "    multiply(ahead);\n    ptx::wgmma_wait_group<1>();\n",
            "    multiply(ahead);\n    ptx::wgmma_wait_group<2>();\n",
        ),
        _FEW_STAGES,
    ),
    _logits(
        "a stage is given back before its scales are read",
        "race",
        (
            SCORES,
            _FACTORS + _KEYS_BACK,
            _KEYS_BACK + _FACTORS,
        ),
        _FEW_STAGES,
    ),
    _logits(
        "queries are given back before the last tile",
        "race operands",
        (
            SCORES,
            _QUERIES_BACK,
            _QUERIES_BACK.replace("smem", "if (me.warpgroup == 0) smem"),
        ),
        (SCORES, "query_ring.init(2, T::kMathWarps);", "query_ring.init(2, T::kMathWarps / 2);"),
        schedules=(("late", 0), ("lowest", 0), ("highest", 0), ("random", 1), ("random", 2), ("random", 3)),
    ),
    _logits(
        "weights are not waited for",
        "race uninitialised values mbarrier",
        (SCORES, "query_ring.init(2, T::kMathWarps);", "query_ring.init(1, T::kMathWarps);"),
    ),
    _logits(
        "a lane announces weights that others still write",
        "race",
        (SCORES, "32 * i + lane] = weights[i];\n    __syncwarp();\n", "32 * i + lane] = weights[i];\n"),
    ),
    _logits(
        "a warpgroup without queries in a run does not pass its tiles on",
        "deadlock",
        (SCORES, "        math.pass_on(run.last_tile - run.first_tile);\n", ""),
        problem=PAGED_KEYS,
    ),
    _logits(
        "the lanes of a quad add up the wrong sums",
        "values",
        (SCORES, "kept = odd ? sums[2 * i + 1] : sums[2 * i];", "kept = odd ? sums[2 * i] : sums[2 * i + 1];"),
    ),
    _logits(
        "weights of the neighbouring pair",
        "values",
        (SCORES, "__fmaf_rn(weights[2 * group + i % 2],", "__fmaf_rn(weights[2 * group + i / 2],"),
    ),
    _logits(
        "a page of the table too far",
        "values",
        (SCORES, "__shfl_sync(0xffffffff, batch, place % 32)", "__shfl_sync(0xffffffff, batch, (place + 1) % 32)"),
        problem=PAGED_KEYS,
    ),
    _logits(
        "keys beyond the last are stored",
        "bounds values race",  # a race where the next row is another cluster's
        (LOGITS, "if (key < keys) row[key]", "if (keys > 0) row[key]"),
    ),
    _logits(
        "the window's end counts",
        "values",
        (LOGITS, "page_exists && key >= start && key < end;", "page_exists && key >= start && key <= end;"),
    ),
    _logits(
        "no minus infinity after the last tile",
        "values",
        (LOGITS, "        fill(place(run.last_tile), place(item.last_tile));\n", ""),
    ),
    # ---- and their gradient
    _logits_bwd(
        "gated weights are multiplied by keys before all are written",
        "race uninitialised",
        (LOGITS_BACKWARD, "      __syncthreads();\n      add_to_d_q", "      add_to_d_q"),
    ),
    _logits_bwd(
        "gated weights are multiplied by queries before other warps' rows are written",
        "race uninitialised",
        (LOGITS_BACKWARD, "    __syncthreads();\n    add_to_d_k", "    add_to_d_k"),
    ),
    _logits_bwd(
        "queries that others copied are not waited for",
        "race uninitialised",
        (LOGITS_BACKWARD, "    __syncthreads();\n    f32 products", "    f32 products"),
    ),
    _logits_bwd(
        "the next queries overtake the products",
        "race operands",
        (
            LOGITS_BACKWARD,
            "load_queries<C, bf16>(operands, token, smem.queries[stage ^ 1]);",
            "load_queries<C, bf16>(operands, token, smem.queries[stage]);",
        ),
    ),
    # ---- selection
    _topk(
        "no barrier before the buffers are looked at",
        "race values deadlock",
        (
            TOPK,
            "  __device__ __forceinline__ void checkpoint() {\n    team.sync();\n",
            "  __device__ __forceinline__ void checkpoint() {\n",
        ),
    ),
    _topk(
        "the bound is too high",
        "values",
        (TOPK, "smem.bounds[query] = cut.order + 1;", "smem.bounds[query] = cut.order + (1 << 25);"),
    ),
    _topk(
        "buffers are not looked at in time",
        "bounds values",
        (
            "ops/indexer_topk/config.h",
            "wanted < all ? static_cast<int>(wanted - chunk)",
            "wanted < all ? static_cast<int>(wanted + 2 * chunk)",
        ),
    ),
    _topk(
        "what moves overtakes what is read",
        "values",
        (CANDIDATES, "      sync();  // what is written below lies before what is still to be read\n", ""),
        problem=BEST_KEYS | {"topk": 300, "keys": 64 * 30},
    ),
    _topk(
        "a split keeps one too few",
        "values",
        (TOPK, "from.count > topk ? team.cut(from, topk, 0)", "from.count >= topk ? team.cut(from, topk - 1, 0)"),
        variant=3,
    ),
    _topk(
        "a digit of the cut is lost",
        "values bounds",
        (
            CANDIDATES,
            "wanted -= found.before;\n      if (found.count - wanted <= slack)",
            "wanted -= found.before;\n      if (pass == 0)",
        ),
    ),
    # ---- attention to chosen keys
    _attention(
        "gathered keys without a proxy fence",
        "proxy",
        (MLA_FORWARD, "    ptx::fence_proxy_async_shared();  // the loader's copies, for wgmma\n", ""),
    ),
    _attention(
        "probabilities without a proxy fence",
        "proxy",
        (
            MLA_FORWARD,
            "me);\n    ptx::fence_proxy_async_shared();\n    sync_math<T>();\n    if",
            "me);\n    sync_math<T>();\n    if",
        ),
    ),
    _attention(
        "no barrier between the scores and the probabilities that take their keys' place",
        "race uninitialised wgmma",
        (MLA_FORWARD, "    sync_math<T>();  // now both have read the rotated dims, too\n", ""),
    ),
    _attention(
        "no barrier before the values",
        "race proxy values",
        (
            MLA_FORWARD,
            "    ptx::fence_proxy_async_shared();\n    sync_math<T>();\n    if",
            "    ptx::fence_proxy_async_shared();\n    if",
        ),
    ),
    _attention(
        "the loader does not wait for a stage to be free",
        "race wgmma",
        (MLA, "    }\n    smem.ring.wait_empty(at);\n", "    }\n"),
    ),
    _attention(
        "older output keeps its scale",
        "values",
        (MLA_FORWARD, "    if (tile != 0) rescale<T>(out, smem, me);\n", ""),
    ),
    _attention(
        "absent keys count",
        "values",
        (
            MLA,
            "products[i] = present ? __fmul_rn(products[i], scale_log2) : -__builtin_inff();",
            "products[i] = __fmul_rn(products[i], scale_log2);",
        ),
    ),
    _attention(
        "an index below zero is a key",
        "bounds",
        (
            MLA,
            "if (key < 0 || key >= keys) return -1;",
            "if (key >= keys) return -1;\n    if (key < 0) return key & 0x7fffffff;",
        ),
    ),
    _attention(
        "the sums of one warp are left out",
        "values",
        (MLA_FORWARD, "for (int warp = 1; warp < 4; ++warp) sum", "for (int warp = 1; warp < 3; ++warp) sum"),
    ),
    # ---- attention to cached keys
    _decode(
        "the second weights overtake the products with the first",
        "race wgmma proxy",
        (MLA_DECODE, "      sync_math<T>();  // all have read the weights of the first groups\n", ""),
    ),
    _decode(
        "a group's scale for another's values",
        "values",
        (MLA_DECODE, "weigh<T, 2 + kSecond>(pairs", "weigh<T, 1 + kSecond>(pairs"),
    ),
    _decode(
        "widened keys without a proxy fence",
        "proxy",
        (MLA_DECODE, "    ptx::fence_proxy_async_shared();  // the loader's keys, for wgmma\n", ""),
    ),
    _decode(
        "a tile keeps its own scale",
        "values",
        (
            MLA_DECODE,
            "return __fmaf_rn(o, older, __fmul_rn(o_tile, newer));",
            "return __fadd_rn(__fmul_rn(o, older), o_tile);",
        ),
    ),
    _decode(
        "partial results of a tile too far are merged",
        "bounds uninitialised values",
        (MLA_DECODE, "partial.row(token, tile, head);", "partial.row(token, tile + 1, head);"),
        problem=TILES_APART,
    ),
    _attention_bwd(
        "the next keys overtake the products",
        "race wgmma",
        (
            MLA_BACKWARD,
            "    __syncthreads();  // all have read the tile, ds and W, which the next turn overwrites\n",
            "",
        ),
    ),
    _attention_bwd(
        "gradients of scores without a proxy fence",
        "proxy",
        (MLA_BACKWARD, "keys, me);\n    ptx::fence_proxy_async_shared();\n", "keys, me);\n"),
    ),
    _attention_bwd(
        "the unit is too small for the sums",
        "values",
        ("cuda/fixed_point.cuh", "61 - ilogb(bound)", "89 - ilogb(bound)"),
    ),
    _attention_bwd(
        "values' columns get no gradient of their own",
        "values",
        (MLA_BACKWARD, "d_kv, weights + step * kStep", "d_kv, d_scores + step * kStep"),
    ),
]
