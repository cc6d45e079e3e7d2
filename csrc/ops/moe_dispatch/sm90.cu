// moe_dispatch on sm_90a: a sort of one or two launches, and one that moves rows, bound by memory.
//
// Sort. A block has a slab of 2048 (token, k), a warp 256 of them in order. Equal ids within 32 neighbours find each
// other by match; their first lane counts them for its warp, so no order depends on who comes first. Every block knows
// all slabs' counts (the first launch makes them, if there are several), hence where its own rows begin.
//
// Rows. A thread reads 16 bytes of a token and writes them to all the token's rows. The blocks after those clear what
// no token has, a warp a row.
#include "cuda/launch.h"
#include "ops/moe_dispatch/check.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "moe_dispatch";

struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWarpItems = static_cast<int>(kDispatchSlab) / kWarps;
  static constexpr int kOwn = static_cast<int>(kMostLocalExperts) / kThreads;  // experts of a thread, side by side
};
constexpr u32 kAllLanes = 0xffffffff;

__device__ __forceinline__ i64 assignments_of(const MoeDispatchArgs& args) {
  return args.experts.shape[0] * args.experts.shape[1];
}
__device__ __forceinline__ i32 expert_at(const MoeDispatchArgs& args, i64 item) {
  return item < assignments_of(args) ? args.local(args.experts.data[item]) : -1;
}
__device__ __forceinline__ i32* slab_counts(const MoeDispatchArgs& args, i64 slab) {
  return reinterpret_cast<i32*>(args.workspace.data) + slab * (args.offsets.shape[0] - 1);
}

__global__ __launch_bounds__(Config::kThreads)
void count_slab_kernel(const __grid_constant__ MoeDispatchArgs args) {
  __shared__ i32 counts[kMostLocalExperts];
  const i32 experts = static_cast<i32>(args.offsets.shape[0]) - 1;
  for (i32 e = threadIdx.x; e < experts; e += Config::kThreads) counts[e] = 0;
  __syncthreads();
  const i64 first = i64{blockIdx.x} * kDispatchSlab;
  for (int i = threadIdx.x; i < kDispatchSlab; i += Config::kThreads) {
    const i32 expert = expert_at(args, first + i);
    if (expert >= 0) atomicAdd(counts + expert, 1);
  }
  __syncthreads();
  for (i32 e = threadIdx.x; e < experts; e += Config::kThreads) slab_counts(args, blockIdx.x)[e] = counts[e];
}

struct SortStorage {
  i32 next[Config::kWarps][kMostLocalExperts];  // a warp's counts, then its next rows
  i32 warp_sums[Config::kWarps];
  i32 used;
};

// The lanes of the same expert.
struct Alike {
  u32 lanes;
  __device__ __forceinline__ explicit Alike(i32 expert) : lanes(__match_any_sync(kAllLanes, expert)) {}
  __device__ __forceinline__ int before() const { return __popc(lanes & ((1u << threadIdx.x % 32) - 1)); }
  __device__ __forceinline__ bool is_first() const { return before() == 0; }
  __device__ __forceinline__ int count() const { return __popc(lanes); }
};

// What a thread's experts have in the slabs before this one, and in all.
struct Totals {
  i32 before[Config::kOwn], all[Config::kOwn];
};

__device__ __forceinline__ Totals totals_of(const MoeDispatchArgs& args, const SortStorage& smem, i32 first,
                                            i32 experts) {
  Totals totals;
#pragma unroll
  for (int i = 0; i < Config::kOwn; ++i) {
    i32 own = 0, before = 0, after = 0;
    if (first + i < experts) {
#pragma unroll
      for (int w = 0; w < Config::kWarps; ++w) own += smem.next[w][first + i];
      for (i64 slab = 0; slab < gridDim.x; ++slab) {
        if (slab == blockIdx.x) continue;
        (slab < blockIdx.x ? before : after) += slab_counts(args, slab)[first + i];
      }
    }
    totals.before[i] = before;
    totals.all[i] = before + own + after;
  }
  return totals;
}

// The sum of what threads before this one have; the last thread leaves the sum of all.
__device__ __forceinline__ i32 sum_before(i32 mine, SortStorage& smem) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  i32 sum = mine;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const i32 other = __shfl_up_sync(kAllLanes, sum, distance);
    sum += lane >= distance ? other : 0;
  }
  if (lane == 31) smem.warp_sums[warp] = sum;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < Config::kWarps; ++w) sum += w < warp ? smem.warp_sums[w] : 0;
  if (threadIdx.x == Config::kThreads - 1) smem.used = sum;
  return sum - mine;
}

// Turns the warps' counts into their next rows.
__device__ __forceinline__ void place_experts(const MoeDispatchArgs& args, SortStorage& smem) {
  const i32 experts = static_cast<i32>(args.offsets.shape[0]) - 1;
  const i32 first = static_cast<i32>(threadIdx.x) * Config::kOwn;
  const Totals totals = totals_of(args, smem, first, experts);
  i32 mine = 0;
#pragma unroll
  for (int i = 0; i < Config::kOwn; ++i) mine += totals.all[i];
  i32 start = sum_before(mine, smem);
#pragma unroll
  for (int i = 0; i < Config::kOwn; ++i) {
    const i32 expert = first + i;
    if (expert >= experts) break;
    if (blockIdx.x == 0) *args.offsets.at(expert) = start;
    i32 row = start + totals.before[i];
#pragma unroll
    for (int w = 0; w < Config::kWarps; ++w) {
      const i32 count = smem.next[w][expert];
      smem.next[w][expert] = row;
      row += count;
    }
    start += totals.all[i];
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.offsets.at(experts) = smem.used;
}

__global__ __launch_bounds__(Config::kThreads)
void sort_kernel(const __grid_constant__ MoeDispatchArgs args) {
  __shared__ SortStorage smem;
  const i64 assignments = assignments_of(args), slab = i64{blockIdx.x} * kDispatchSlab;
  const i32 experts = static_cast<i32>(args.offsets.shape[0]) - 1, topk = static_cast<i32>(args.experts.shape[1]);
  for (i32 i = threadIdx.x; i < Config::kWarps * experts; i += Config::kThreads)
    smem.next[i / experts][i % experts] = 0;
  __syncthreads();
  i32* next = smem.next[threadIdx.x / 32];
  const i64 first = slab + threadIdx.x / 32 * Config::kWarpItems + threadIdx.x % 32;
  for (int i = 0; i < Config::kWarpItems; i += 32) {
    const i32 expert = expert_at(args, first + i);
    const Alike alike(expert);
    if (expert >= 0 && alike.is_first()) next[expert] += alike.count();
    __syncwarp();
  }
  __syncthreads();
  place_experts(args, smem);
  for (int i = 0; i < Config::kWarpItems; i += 32) {
    const i64 item = first + i;
    const i32 expert = expert_at(args, item);
    const Alike alike(expert);
    const i32 row = expert >= 0 ? next[expert] + alike.before() : -1;
    __syncwarp();
    if (expert >= 0 && alike.is_first()) next[expert] += alike.count();
    __syncwarp();
    if (item < assignments) args.slots.data[item] = row;
    if (row >= 0) *args.row_tokens.at(row) = static_cast<i32>(item / topk);
  }
  for (i64 row = slab + threadIdx.x; row < slab + kDispatchSlab; row += Config::kThreads)
    if (row >= smem.used && row < assignments) *args.row_tokens.at(row) = -1;
}

template <class Word>
__global__ __launch_bounds__(Config::kThreads)
void move_rows_kernel(const __grid_constant__ MoeDispatchArgs args) {
  const i64 words = args.rows.shape[1] / i64{sizeof(Word)};
  const u32 strips = static_cast<u32>(ceil_div(words, Config::kThreads));
  const u32 moving = static_cast<u32>(args.x.shape[0]) * strips;
  if (blockIdx.x < moving) {
    const i64 token = blockIdx.x / strips, word = i64{blockIdx.x % strips} * Config::kThreads + threadIdx.x;
    if (word >= words) return;
    const Word value = __ldg(reinterpret_cast<const Word*>(args.x.at(token, 0)) + word);
    for (i64 k = 0; k < args.slots.shape[1]; ++k) {
      const i64 row = *args.slots.at(token, k);
      if (row >= 0) reinterpret_cast<Word*>(args.rows.at(row, 0))[word] = value;
    }
    return;
  }
  const i64 row = i64{blockIdx.x - moving} * Config::kWarps + threadIdx.x / 32;
  if (row >= args.rows.shape[0] || row < *args.offsets.at(args.offsets.shape[0] - 1)) return;
  for (i64 word = threadIdx.x % 32; word < words; word += 32)
    reinterpret_cast<Word*>(args.rows.at(row, 0))[word] = Word{};
}

// Neighbouring threads have neighbouring rows: scales are column-major.
__global__ __launch_bounds__(Config::kThreads)
void move_scales_kernel(const __grid_constant__ MoeDispatchArgs args) {
  const u32 groups = static_cast<u32>(args.row_scales.shape[1]), group = blockIdx.x % groups;
  const i64 row = i64{blockIdx.x / groups} * Config::kThreads + threadIdx.x;
  if (row >= args.row_scales.shape[0]) return;
  const i32 token = *args.row_tokens.at(row);
  *args.row_scales.at(row, group) = token < 0 ? 0.0f : *args.scales.at(token, group);
}

bool moves_by_16(const MoeDispatchArgs& args) {
  const u64 all = reinterpret_cast<u64>(args.x.data) | reinterpret_cast<u64>(args.rows.data) |
                  static_cast<u64>(args.rows.shape[1] | args.rows.stride[0]) |
                  static_cast<u64>(args.x.shape[0] > 1 ? args.x.stride[0] : 0);
  return all % 16 == 0;
}

template <auto kKernel>
void launch(const MoeDispatchArgs& args, i64 blocks, const cuda::Device& device, void* stream) {
  require(blocks < (i64{1} << 31), kOp, ": too many rows for one launch: ", args.rows.shape[0]);
  const cuda::LaunchShape shape{.blocks = dim3(static_cast<unsigned>(blocks)), .threads = Config::kThreads};
  if (blocks > 0) cuda::launch<kKernel>(kOp, device, shape, stream, args);
}

template <class Word>
void move_rows(const MoeDispatchArgs& args, const cuda::Device& device, void* stream) {
  const i64 strips = ceil_div(args.rows.shape[1] / i64{sizeof(Word)}, Config::kThreads);
  const i64 clearing = ceil_div(args.rows.shape[0], Config::kWarps);
  launch<move_rows_kernel<Word>>(args, args.x.shape[0] * strips + clearing, device, stream);
}

}  // namespace

void moe_dispatch_cuda(const MoeDispatchArgs& args, void* stream) {
  check_moe_dispatch(args);
  const cuda::Device device = cuda::require_sm90(kOp);
  const i64 assignments = args.experts.shape[0] * args.experts.shape[1], experts = args.offsets.shape[0] - 1;
  require(args.workspace.shape[0] >= moe_dispatch_cuda_workspace_bytes(assignments, experts), kOp,
          ": workspace must be u8[", moe_dispatch_cuda_workspace_bytes(assignments, experts), "] or longer");
  const i64 slabs = larger(1, ceil_div(assignments, kDispatchSlab));  // offsets are written even if nothing is sorted
  if (slabs > 1) launch<count_slab_kernel>(args, slabs, device, stream);
  launch<sort_kernel>(args, slabs, device, stream);
  if (!args.x.exists() || args.rows.shape[0] == 0 || args.rows.shape[1] == 0) return;
  if (moves_by_16(args))
    move_rows<uint4>(args, device, stream);
  else
    move_rows<u8>(args, device, stream);
  if (args.scales.exists())
    launch<move_scales_kernel>(args, ceil_div(args.rows.shape[0], Config::kThreads) * args.row_scales.shape[1], device,
                               stream);
}

}  // namespace glm5
