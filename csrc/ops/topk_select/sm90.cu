// topk_select on sm_90a: one block of 512 threads per row, or a cluster of them, each with a piece of the row.
//
//   1  keys are counted by their upper 11 bits; a piece that fits shared memory is kept there, as keys
//   2  else the keys from the bin of the cut on are staged in shared memory, in order; if they do not fit (equal or
//      close scores), the piece is read again instead, in each step that follows
//   3  the two lower digits of the k-th key, from what is staged
//   4  chosen keys go to their places, which prefix sums tell, and the sums of a fingerprint and a margin are made
//
// Floor: rows * keys * 4 bytes from memory, once (H200: 4.3 TB/s): 4.0 ms for 65536 rows of 65536. A piece of up to
// 24,064 keys is read once; a longer one twice, and the second time from L2, since 264 blocks with rows of 128 KiB have
// 34 MiB under way; rows of equal scores four times. One block moves at most 64 B per clock: a row of 131,072 keys takes
// it 8,192 clocks a pass, eight blocks 1,024.
#include "cuda/launch.h"
#include "cuda/topk.cuh"
#include "ops/topk_select/config.h"
#include "ops/topk_select/sm90.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "topk_select";
using topk_select_sm90::Config;
using topk_select_sm90::kThreads;

struct alignas(16) SharedStorage {
  cuda::TopkStorage<kThreads> topk;
  u64 warp_fingerprints[kThreads / 32];
  u32 warp_worst[kThreads / 32], warp_best[kThreads / 32];
  u32 sums[4];  // of this block, for the cluster: fingerprint low and high, worst chosen key, best key left out

  __device__ __forceinline__ u32* staged() { return reinterpret_cast<u32*>(this + 1); }
};
static_assert(sizeof(SharedStorage) <= topk_select_sm90::kFixedBytes);

// ---- What happens to a key ----

// Stores results, and gathers what fingerprint and margin need.
struct Results {
  i32* indices;
  const i32* table;  // or null
  u64 fingerprint = 0;
  u32 worst = 0xffffffffu, best_left_out = 0;

  __device__ __forceinline__ void store(u32 position, i32 index) {
    indices[position] = table != nullptr ? topk_slot(table, index) : index;
    fingerprint += topk_mix(index);
  }
  __device__ __forceinline__ void take(u32 position, i32 index, u32 key) {
    store(position, index);
    worst = min(worst, key);
  }
  __device__ __forceinline__ void leave(u32 key) { best_left_out = max(best_left_out, key); }
};

// Stages candidates; what is left out here may be the best left out at the end.
struct Stage {
  u32* keys;
  i32* indices;
  u32 best_left_out = 0;

  __device__ __forceinline__ void take(u32 position, i32 index, u32 key) {
    keys[position] = key;
    indices[position] = index;
  }
  __device__ __forceinline__ void leave(u32 key) { best_left_out = max(best_left_out, key); }
};

// ---- Steps ----

// Keeps the keys of a piece in shared memory.
__device__ __forceinline__ cuda::TopkKeys keep_keys(const cuda::TopkScores& scores, u32* staged) {
  uint4* keys = reinterpret_cast<uint4*>(staged);
  for (u32 tile = 0; tile < scores.quads(); tile += kThreads * cuda::kTopkQuads) {
    cuda::TopkQuad loaded[cuda::kTopkQuads];
#pragma unroll
    for (int q = 0; q < cuda::kTopkQuads; ++q) loaded[q] = scores.load(tile + q * kThreads + threadIdx.x);
#pragma unroll
    for (int q = 0; q < cuda::kTopkQuads; ++q) {
      const u32 quad = tile + q * kThreads + threadIdx.x;
      const u32(&four)[4] = loaded[q].keys;
      if (quad < scores.quads()) keys[quad] = {four[0], four[1], four[2], four[3]};
    }
  }
  __syncthreads();
  return {keys, scores.first, scores.begin, scores.end};
}

// The digits from `level` on, and then the results.
template <class Source>
__device__ __forceinline__ void finish(const Source& source, SharedStorage& smem, int level, u32 cluster,
                                       cuda::TopkCut cut, Results& results) {
  for (; !cut.done; ++level) {
    cuda::topk_count<kThreads>(source, smem.topk, level, cut);
    cuda::topk_find<kThreads>(smem.topk, level, cluster, cut);
  }
  const cuda::TopkPlace place = cuda::topk_place<kThreads>(smem.topk, cluster, cut);
  cuda::topk_visit<kThreads>(source, smem.topk, cut, place, results);
}

// More keys than are wanted.
__device__ __forceinline__ void select(const cuda::TopkScores& scores, SharedStorage& smem, u32 topk, u32 cluster,
                                       u32 staged_bytes, Results& results) {
  cuda::TopkCut cut{.need = topk};
  smem.topk.clear();
  if (scores.quads() * 16 <= staged_bytes) {
    const cuda::TopkKeys keys = keep_keys(scores, smem.staged());
    return finish(keys, smem, 0, cluster, cut, results);
  }
  cuda::topk_count<kThreads>(scores, smem.topk, 0, cut);
  cuda::topk_find<kThreads>(smem.topk, 0, cluster, cut);
  const u32 candidates = cut.own_above + cut.own_within;
  if (candidates * 8 > staged_bytes) return finish(scores, smem, 1, cluster, cut, results);
  Stage stage{smem.staged(), reinterpret_cast<i32*>(smem.staged() + candidates)};
  const cuda::TopkCut from_bin{.need = 0xffffffffu, .floor = cut.floor};
  cuda::topk_visit<kThreads>(scores, smem.topk, from_bin, {0, 0}, stage);
  results.best_left_out = stage.best_left_out;
  finish(cuda::TopkList{stage.keys, stage.indices, candidates}, smem, 1, cluster, cut, results);
}

// Adds up what threads and blocks have of fingerprint and margin; thread 0 of the first block stores them.
__device__ __forceinline__ void store_sums(const TopkSelectArgs& args, SharedStorage& smem, i64 row, u32 cluster,
                                           bool leaves_out, const Results& results) {
  u64 fingerprint = results.fingerprint;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) fingerprint += __shfl_xor_sync(0xffffffffu, fingerprint, step);
  u32 worst = __reduce_min_sync(0xffffffffu, results.worst);
  u32 best = __reduce_max_sync(0xffffffffu, results.best_left_out);
  if (threadIdx.x % 32 == 0) {
    smem.warp_fingerprints[threadIdx.x / 32] = fingerprint;
    smem.warp_worst[threadIdx.x / 32] = worst;
    smem.warp_best[threadIdx.x / 32] = best;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w) {
      fingerprint += smem.warp_fingerprints[w];
      worst = min(worst, smem.warp_worst[w]);
      best = max(best, smem.warp_best[w]);
    }
    smem.sums[0] = static_cast<u32>(fingerprint);
    smem.sums[1] = static_cast<u32>(fingerprint >> 32);
    smem.sums[2] = worst;
    smem.sums[3] = best;
  }
  if (cluster > 1) cuda::topk_sync(cluster);
  if (threadIdx.x == 0 && blockIdx.x % cluster == 0) {
    for (u32 rank = 1; rank < cluster; ++rank) {
      fingerprint += u64{cuda::topk_peek(&smem.sums[1], rank)} << 32 | cuda::topk_peek(&smem.sums[0], rank);
      worst = min(worst, cuda::topk_peek(&smem.sums[2], rank));
      best = max(best, cuda::topk_peek(&smem.sums[3], rank));
    }
    if (args.fingerprints.shape[0] > 0) *args.fingerprints.at(row) = static_cast<i64>(fingerprint);
    if (args.margins.shape[0] > 0)
      *args.margins.at(row) = leaves_out ? topk_margin(cuda::topk_order(worst), cuda::topk_order(best)) : INFINITY;
  }
}

// ---- Kernel ----

struct RowPlan {
  TopkWindow window;
  const i32* table;  // or null
};

// What is out of range counts as not there.
__device__ __forceinline__ RowPlan plan_of(const TopkSelectArgs& args, i64 row) {
  const i64 keys = args.scores.shape[1];
  TopkWindow window{0, keys};
  if (args.windows.exists()) window = topk_window(*args.windows.at(row, 0), *args.windows.at(row, 1), keys);
  if (!args.block_table.exists()) return {window, nullptr};
  const i64 sequence = *args.sequences.at(row);
  if (sequence < 0 || sequence >= args.block_table.shape[0]) return {{0, 0}, nullptr};
  return {topk_window(window.begin, window.end, smaller(keys, args.block_table.shape[1] * kPage)),
          args.block_table.at(sequence, 0)};
}

__global__ __launch_bounds__(kThreads, topk_select_sm90::kBlocksPerSm)
void topk_select_kernel(const __grid_constant__ TopkSelectArgs args, u32 cluster, u32 staged_bytes) {
  extern __shared__ __align__(16) u8 smem_bytes[];
  SharedStorage& smem = *reinterpret_cast<SharedStorage*>(smem_bytes);
  const i64 row = blockIdx.x / cluster, rank = blockIdx.x % cluster, topk = args.indices.shape[1];
  const RowPlan plan = plan_of(args, row);
  const i64 keys = plan.window.size(), begin = keys * rank / cluster, end = keys * (rank + 1) / cluster;
  i32* indices = args.indices.at(row, 0);
  Results results{indices, plan.table};
  for (i64 i = smaller(keys, topk) + rank * kThreads + threadIdx.x; i < topk; i += i64{kThreads} * cluster)
    indices[i] = -1;
  if (keys <= topk) {
    for (i64 i = begin + threadIdx.x; i < end; i += kThreads)
      results.store(static_cast<u32>(i), static_cast<i32>(plan.window.begin + i));
  } else {
    const i64 first = plan.window.begin + begin;
    select(cuda::TopkScores::of(args.scores.at(row, first), first, end - begin), smem, static_cast<u32>(topk), cluster,
           staged_bytes, results);
  }
  if (args.fingerprints.shape[0] > 0 || args.margins.shape[0] > 0)
    store_sums(args, smem, row, cluster, keys > topk, results);
  if (cluster > 1) cuda::topk_sync(cluster);  // no block's shared memory goes while another reads it
}

// ---- Launcher ----

void launch(const TopkSelectArgs& args, const Config& config, const cuda::Device& device, void* stream) {
  require(config.grid < i64{1} << 31, kOp, ": rows must be fewer than 2^31 / ", config.cluster, "; got ",
          args.scores.shape[0]);
  const cuda::LaunchShape shape{.blocks = dim3(static_cast<unsigned>(config.grid)),
                                .threads = config.threads,
                                .smem_bytes = config.smem_bytes,
                                .cluster = config.cluster};
  cuda::launch<topk_select_kernel>(kOp, device, shape, stream, args, static_cast<u32>(config.cluster),
                                   static_cast<u32>(config.staged_bytes));
}

}  // namespace

void topk_select_cuda(const TopkSelectArgs& args, void* stream) {
  const cuda::Device device = cuda::require_sm90(kOp);
  const i64 rows = args.scores.shape[0];
  if (rows == 0) return;
  launch(args, topk_select_sm90::choose_config(rows, args.scores.shape[1], args.indices.shape[1], device.sms), device,
         stream);
}

void topk_select_sm90::run_variant(const TopkSelectArgs& args, int cluster, int staged_bytes, void* stream) {
  const cuda::Device device = cuda::require_sm90(kOp);
  require(cluster == 1 || cluster == 2 || cluster == 4 || cluster == 8, kOp, ": cluster must be 1, 2, 4 or 8; got ",
          cluster);
  require(staged_bytes >= 0 && staged_bytes <= kStagedBytes && staged_bytes % 1024 == 0, kOp,
          ": staged_bytes must be a multiple of 1024 up to ", kStagedBytes, "; got ", staged_bytes);
  if (args.scores.shape[0] == 0) return;
  launch(args, config_of(args.scores.shape[0], cluster, staged_bytes), device, stream);
}

}  // namespace glm5
