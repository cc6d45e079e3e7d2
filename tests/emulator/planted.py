"""Faults planted in the library's kernels, each with the check that must speak.

`checks` names the checks of the emulator that are right to speak, `values` where only the result shows it. What they
leave out: a missing __syncwarp between lanes of one warp (lanes are not told apart by the race check).
"""

from dataclasses import dataclass, field

from tests.emulator.doors import find_variant

FP8 = "ops/fp8_gemm/kernel_sm90.cuh"
GEMM = "ops/gemm/kernel_sm90.cuh"
RING = "cuda/pipeline.cuh"
WGMMA = "cuda/ptx/wgmma.cuh"
STORE = "cuda/tile_store.cuh"


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


def _fp8(name, checks, *edits, variant=FP8_ROWS, problem=RAGGED, **more):
    return Planted(name, "fp8_gemm", variant, edits, frozenset(checks.split()), problem, **more)


def _gemm(name, checks, *edits, variant=BF16_ROWS, problem=RAGGED_BF16, **more):
    return Planted(name, "gemm", variant, edits, frozenset(checks.split()), problem, **more)


_STEP_AHEAD = "  ptx::wgmma_wait_group<1>();\n  finish<T>(total, part, Scales<T>(smem, here.stage"
_START = "    smem.ring.init(1, T::kConsumerWarps * T::kCluster);\n    ptx::fence_mbarrier_init();\n"
_CLUSTER_END = (
    "  if constexpr (T::kCluster > 1) {\n    ptx::barrier_cluster_arrive();\n    ptx::barrier_cluster_wait();\n  }\n"
)

FAULTS = [
    # ---- starting and ending
    _fp8("barriers initialised without a fence", "proxy", (FP8, "    ptx::fence_mbarrier_init();\n", "")),
    _fp8("no barrier after the initialisation", "race mbarrier uninitialised", (FP8, "    __syncthreads();\n", "")),
    _fp8(
        "a cluster that starts with a barrier of one block",
        "race mbarrier uninitialised",
        (
            FP8,
            "  if constexpr (T::kCluster == 1) {\n    __syncthreads();",
            "  if constexpr (T::kCluster >= 1) {\n    __syncthreads();",
        ),
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
        "race operands",
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
    # ---- wgmma
    _fp8("no wgmma.fence", "wgmma", (FP8, "  ptx::wgmma_fence();\n", "")),
    _fp8("no wgmma.commit_group", "race operands", (FP8, "  ptx::wgmma_commit_group();\n", "")),
    _gemm("a stage is given back at once", "race operands", (GEMM, "    ptx::wgmma_wait_group<1>();\n", "")),
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
        (FP8, "&args.right, k, corner.right_row, full", "&args.right, k, corner.right_row + 1, full"),
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
]
