// sparse_mla_decode, schedule "fast", on sm_90a. The tree of decode.h, tiles merged in ascending order; inside a tile:
//
//   d      = products by wgmma, bf16 in, f32 sums. Of a cache of bytes: the rotated dims, then for each group of 128
//            dims, ascending, d = fma(scale of the key and group, query . e4m3, d). Bytes become bf16, which is exact
//   s      = d * (scale * log2 e);  p = 2^(s - m_tile): m stands in powers of two
//   l_tile = the two places of a lane, i and i + 8; eight lanes pairwise, 1, 2 and 4 apart; four warps ascending
//   o_tile = bf16(p) v by wgmma; of a cache of bytes bf16(p * scale of the key and group) e4m3
//   lse    = (m + log2 l) * ln 2;  out = bf16(o * (factor / l))
//
// A block has a token and up to 64 of its heads, and all its tiles, one after the other; or, where tokens are few, one
// tile, whose m_tile, l_tile and o_tile go to the workspace, from where a second kernel merges them. What a head gets
// depends neither on this nor on the other heads, so that the choices below are of speed alone.
//
//   loader          a warpgroup gathers rows and widens bytes to bf16 on the way (or copies bf16 by cp.async), into two
//                   stages as in sparse_mla.cuh. A thread has 8 dims of each part of a key; it asks for one key
//                   and looks up another while it widens a third
//   two warpgroups  scores: keys are wgmma's M operand, heads its N, half of them each; output: the value's dims are M,
//                   half of them each, all heads N, so that few heads cost few columns. A warpgroup's dims have two
//                   scales, to be applied to p: the weights for one half of them go to shared memory, then the others
//
// Calculated for topk 2048 on an H200 at 1.755 GHz, not measured. A tile of 64 keys of a cache of bytes, on one SM: 41
// KiB at 24 bytes per clock 1750 clocks; widening 5 instructions for 2 dims, 600 clocks of all four schedulers; these
// run beside the chain of: scores, 36 steps of 64 x 16 x 16 by each warpgroup, which read 2.5 KiB of shared memory,
// 1440 clocks; output, 32 steps of 64 x 32 x 16, which read 3 KiB, 768; exp, reductions and four barriers some 600;
// merging, 2 instructions for each of 32 x 512 sums, 256 issue slots of a scheduler, half of it beside products. Some
// 2900 clocks in all for 32 heads.
//   128 tokens, 64 heads: 256 blocks of 32 heads, two rounds of 32 tiles: 186,000 clocks, 106 us. Floors: memory 44 us
//   (128 x 1.4 MB at 4.3 TB/s), tensor cores 46 us. What is missing is a block of 64 heads, which reads a tile once for
//   twice the products, some 3200 clocks, 60 us in all: its running output, weights and products take some ten
//   registers more than there are.
//   1 token, 64 heads: 32 blocks of one tile, some 7000 clocks with the queries, 4 us; they write and the second kernel
//   reads 4 MiB that stay in the L2 cache, 1 us each way; a second launch some 1 us.
//   t tokens dealt out move 8 MiB t of partial results, which at 16 costs what the idle SMs would win.
#include "cuda/launch.h"
#include "cuda/sparse_mla.cuh"
#include "ops/sparse_mla_attention/limits_sm90.h"

namespace glm5 {
namespace {

using namespace cuda;

constexpr const char* kOp = "sparse_mla_decode";

// kBytes: a cache of bytes. kApart: a block has one tile.
template <int kHeadsOf, bool kBytesOf, bool kApartOf>
struct DecodeTile : SparseMlaTile<kHeadsOf, kMlaDim> {
  static constexpr bool kBytes = kBytesOf, kApart = kApartOf;
  static constexpr int kLoaderRegisters = 80, kMathRegisters = 216;
};

// What a block works on.
struct DecodeWork {
  i64 token, first_head;
  int first_tile, last_tile, heads;
};

template <class T>
struct DecodeStorage {
  alignas(1024) u8 queries[T::kParts][T::kHeads][128];
  alignas(1024) u8 keys[T::kStages][9][T::kTile][128];  // the last part: rotated dims, then the first weights
  alignas(1024) u8 weights[T::kHeads][128];             // p * scale, for the second warpgroup
  alignas(16) f32 largest[2][4][T::kHalf];              // of a warp's 16 keys
  alignas(16) f32 sums[2][4][T::kHalf];
  alignas(16) f32 older[T::kHeads], newer[T::kHeads];  // f and g; at the end older is what o is multiplied by
  Pipeline<T::kStages> ring;
  ChosenKeys chosen;  // here, to save registers
  DecodeWork work;
};

// Where partial results lie.
struct DecodePartial {
  f32* outs;  // [token][tile][head][512]
  f32* sums;  // [token][tile][head][2]
  i64 tiles, heads;

  __device__ __forceinline__ explicit DecodePartial(const SparseMlaAttentionArgs& args)
      : tiles(ceil_div(args.indices.shape[1], i64{64})), heads(args.q.shape[1]) {
    outs = reinterpret_cast<f32*>(args.workspace.data);
    sums = outs + args.q.shape[0] * tiles * heads * kMlaLatent;
  }
  __device__ __forceinline__ i64 row(i64 token, i64 tile, i64 head) const {
    return (token * tiles + tile) * heads + head;
  }
};

__device__ __forceinline__ ChosenKeys chosen_keys(const SparseMlaAttentionArgs& args, i64 token) {
  return ChosenKeys(args.indices, args.topk_length, args.cache.slots(), args.block_table, args.sequences, token);
}

// ---- loader: one warpgroup ----

// 8 dims of each part of a key.
struct DecodeLine {
  uint2 codes[8];
  uint4 rope;
};

__device__ __forceinline__ void fetch(DecodeLine& line, const MlaCache& cache, int slot, int chunk) {
  const u8* token = cache.bytes.data + i64{slot < 0 ? 0 : slot} * kMlaTokenBytes;
#pragma unroll
  for (int part = 0; part < 8; ++part)
    line.codes[part] = slot < 0 ? uint2{} : __ldg(reinterpret_cast<const uint2*>(token + part * 64) + chunk);
  line.rope = slot < 0 ? uint4{} : __ldg(reinterpret_cast<const uint4*>(token + kMlaRopeAt) + chunk);
}

// Two e4m3 as bf16, exactly.
__device__ __forceinline__ u32 widen_pair(u32 pair) {
  const u32 halves = ptx::cvt_rn_f16x2_e4m3x2(static_cast<u16>(pair));
  const float2 wide = __half22float2(*reinterpret_cast<const __half2*>(&halves));
  return ptx::cvt_rn_bf16x2_f32(wide.y, wide.x);
}

template <class T>
__device__ __forceinline__ void load_codes(const ChosenKeys& chosen, const MlaCache& cache, DecodeStorage<T>& smem,
                                           RingPosition<T::kStages>& at, int first_tile, int last_tile) {
  const int thread = threadIdx.x % T::kLoaders, first = thread / 8, chunk = thread % 8;
  const int end = last_tile * T::kTile;
  const auto slot_of = [&](int place) { return place < end ? chosen.at(place) : -1; };
  int place = first_tile * T::kTile + first;  // of the key that is widened next; the thread's keys are 16 apart
  DecodeLine ahead;
  fetch(ahead, cache, slot_of(place), chunk);
  int slot = slot_of(place + 16);
  for (int tile = first_tile; tile < last_tile; ++tile, at.advance()) {
    smem.ring.wait_empty(at);
#pragma unroll 1
    for (int line = first; line < T::kTile; line += 16, place += 16) {
      const DecodeLine now = ahead;
      fetch(ahead, cache, slot, chunk);
      slot = slot_of(place + 32);
      const int column = swizzled(line, chunk);
#pragma unroll
      for (int part = 0; part < T::kValueParts; ++part) {
        const uint2 codes = now.codes[part];
        *reinterpret_cast<uint4*>(&smem.keys[at.stage][part][line][column]) = {
            widen_pair(codes.x & 0xffff), widen_pair(codes.x >> 16), widen_pair(codes.y & 0xffff),
            widen_pair(codes.y >> 16)};
      }
      *reinterpret_cast<uint4*>(&smem.keys[at.stage][T::kValueParts][line][column]) = now.rope;
    }
    ptx::mbarrier_arrive(&smem.ring.full[at.stage]);
  }
}

// ---- two warpgroups ----

// The scales of a lane's two keys, and whether these exist.
template <class T>
struct DecodeScales {
  bool present[2];
  float4 of[2];

  __device__ __forceinline__ DecodeScales(const ChosenKeys& chosen, const MlaCache& cache, int place) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int slot = chosen.at(place + 8 * r);
      present[r] = slot >= 0;
      if constexpr (T::kBytes) {
        const u8* token = cache.bytes.data + i64{slot < 0 ? 0 : slot} * kMlaTokenBytes;
        of[r] = slot < 0 ? float4{} : __ldg(reinterpret_cast<const float4*>(token + kMlaScalesAt));
      }
    }
  }
  template <int kGroup>
  __device__ __forceinline__ f32 get(int r) const {
    return kGroup == 0 ? of[r].x : kGroup == 1 ? of[r].y : kGroup == 2 ? of[r].z : of[r].w;
  }
};

// products = keys queries^T over kParts parts from `part` on. The caller fences, commits and waits.
template <class T, int kParts>
__device__ __forceinline__ void start_products(f32 (&products)[T::kHalf / 2], const DecodeStorage<T>& smem, int stage,
                                               int part, int warpgroup) {
  using Rows = const u8[kParts][T::kHeads][128];
  multiply_rows(products, smem.keys[stage] + part, reinterpret_cast<Rows&>(smem.queries[part]), warpgroup * T::kHalf);
}

template <class T, int kGroup>
__device__ __forceinline__ void add_group(f32 (&d)[T::kHalf / 2], const f32 (&products)[T::kHalf / 2],
                                          const DecodeScales<T>& scales) {
#pragma unroll
  for (int i = 0; i < T::kHalf / 2; ++i) d[i] = __fmaf_rn(scales.template get<kGroup>(i / 2 % 2), products[i], d[i]);
}

// query . key without the scale of scores.
template <class T>
__device__ __forceinline__ void multiply_queries(f32 (&d)[T::kHalf / 2], const DecodeStorage<T>& smem, int stage,
                                                 int warpgroup, const DecodeScales<T>& scales) {
  constexpr int kGroups = T::kBytes ? kMlaGroups : 0, kRest = T::kBytes ? T::kValueParts : 0;
  f32 groups[kMlaGroups][T::kHalf / 2];
  ptx::pin(d);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) ptx::pin(groups[g]);
  ptx::wgmma_fence();
  start_products<T, T::kParts - kRest>(d, smem, stage, kRest, warpgroup);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) start_products<T, 2>(groups[g], smem, stage, 2 * g, warpgroup);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(d);
#pragma unroll
  for (int g = 0; g < kGroups; ++g) ptx::pin(groups[g]);
  if constexpr (T::kBytes) {
    add_group<T, 0>(d, groups[0], scales);
    add_group<T, 1>(d, groups[1], scales);
    add_group<T, 2>(d, groups[2], scales);
    add_group<T, 3>(d, groups[3], scales);
  }
}

// Folds the values of the eight lanes that have the same heads, pairwise, lanes 1, 2 and 4 apart. A lane with several
// heads keeps half of them each time and hands the other half over: at the end it has the result of one, the head
// folded_head(). The first kCount of the eight lanes have them all.
template <int kDistance = 4, int kCount, class Op>
__device__ __forceinline__ f32 fold_lanes(const f32 (&values)[kCount], int lane, const Op& op) {
  if constexpr (kDistance == 32) {
    return values[0];
  } else if constexpr (kCount == 1) {
    const f32 folded[1] = {op(values[0], __shfl_xor_sync(0xffffffff, values[0], kDistance))};
    return fold_lanes<2 * kDistance>(folded, lane, op);
  } else {
    const bool upper = (lane & kDistance) != 0;
    f32 kept[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const f32 mine = upper ? values[i + kCount / 2] : values[i], other = upper ? values[i] : values[i + kCount / 2];
      kept[i] = op(mine, __shfl_xor_sync(0xffffffff, other, kDistance));
    }
    return fold_lanes<2 * kDistance>(kept, lane, op);
  }
}
template <int kCount>
__device__ __forceinline__ int folded_head(int lane) {
  const int first = lane / 4 % 2, second = lane / 8 % 2, third = lane / 16;
  return kCount == 8 ? 4 * first + 2 * second + third : kCount == 4 ? 2 * first + second : first;
}

// What a thread has of its head (threads 0 .. kHeads - 1), and one tile more of it.
struct DecodeState {
  f32 m = -__builtin_inff(), l = 0.0f, older = 0.0f, newer = 0.0f;

  __device__ __forceinline__ void advance(f32 m_tile) {
    const f32 most = fmaxf(m, m_tile), base = most == -__builtin_inff() ? 0.0f : most;
    older = ptx::ex2_approx_ftz(__fsub_rn(m, base));
    newer = ptx::ex2_approx_ftz(__fsub_rn(m_tile, base));
    m = most;
  }
  __device__ __forceinline__ void add(f32 l_tile) { l = __fmaf_rn(l, older, __fmul_rn(l_tile, newer)); }

  // The head's lse is stored; returns what o is multiplied by.
  __device__ __forceinline__ f32 finish(const SparseMlaAttentionArgs& args, i64 token, i64 head) const {
    const f32 lse = __fmul_rn(__fadd_rn(m, log2f(l)), kLn2);
    *args.lse.at(token, head) = lse;
    f32 share = 1.0f;
    if (args.sink.exists()) share = __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(__fsub_rn(__ldg(args.sink.at(head)), lse))));
    return l == 0.0f ? 0.0f : __fdiv_rn(share, l);
  }
};
__device__ __forceinline__ f32 merged(f32 o, f32 o_tile, f32 older, f32 newer) {
  return __fmaf_rn(o, older, __fmul_rn(o_tile, newer));
}

// Of each head the largest score of a warp's 16 keys, or the sum of p, to shared memory.
template <class T, class Op>
__device__ __forceinline__ void publish(const f32 (&scores)[T::kHalf / 2], f32 (&to)[2][4][T::kHalf],
                                        const SparseMlaLane& me, const Op& op) {
  f32 own[T::kOwn];
#pragma unroll
  for (int h = 0; h < T::kOwn; ++h) own[h] = op(scores[4 * (h / 2) + h % 2], scores[4 * (h / 2) + h % 2 + 2]);
  const f32 folded = fold_lanes(own, me.lane, op);
  if (me.lane / 4 < T::kOwn) to[me.warpgroup][me.warp][me.head(folded_head<T::kOwn>(me.lane))] = folded;
}

template <int kHalf>
__device__ __forceinline__ f32 largest_of(const f32 (&largest)[2][4][kHalf], int warpgroup, int head) {
  const auto& own = largest[warpgroup];
  return fmaxf(fmaxf(own[0][head], own[1][head]), fmaxf(own[2][head], own[3][head]));
}

// What the values are multiplied by, as pairs of bf16: p, of a cache of bytes times the scales of group kGroup.
template <class T, int kGroup>
__device__ __forceinline__ void weigh(u32 (&pairs)[T::kHalf / 4], const f32 (&p)[T::kHalf / 2],
                                      const DecodeScales<T>& scales) {
#pragma unroll
  for (int i = 0; i < T::kHalf / 4; ++i) {
    const f32 scale = T::kBytes ? scales.template get<kGroup>(i % 2) : 1.0f;
    pairs[i] = ptx::cvt_rn_bf16x2_f32(__fmul_rn(p[2 * i + 1], scale), __fmul_rn(p[2 * i], scale));
  }
}

// Weights of the first or second half of both warpgroups' dims, as lines of wgmma's N operand.
template <class T, int kSecond>
__device__ __forceinline__ void store_weights(const f32 (&p)[T::kHalf / 2], const DecodeScales<T>& scales,
                                              DecodeStorage<T>& smem, int stage, const SparseMlaLane& me) {
  const int first = me.warpgroup * T::kHalf;
  u32 pairs[T::kHalf / 4];
  weigh<T, kSecond>(pairs, p, scales);
  store_pairs_by_head<T::kHalf>(pairs, smem.keys[stage][8][first], me);
  if constexpr (T::kBytes) {
    weigh<T, 2 + kSecond>(pairs, p, scales);
    store_pairs_by_head<T::kHalf>(pairs, smem.weights[first], me);
  }
  ptx::fence_proxy_async_shared();
}

// o_tile of 64 dims of all heads: block b of a warpgroup's four.
template <class T>
__device__ __forceinline__ void multiply_values(f32 (&o_tile)[T::kHeads / 2], const u8* values, const u8* weights) {
  using ptx::Major;
  const u64 left = ptx::wgmma_descriptor_row_major(values), right = ptx::wgmma_descriptor(weights);
  ptx::pin(o_tile);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::k>(o_tile, left + step * ptx::kDescriptorStepK16<Major::rows>,
                                                           right + step * ptx::kDescriptorStepK16<Major::k>, step != 0);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(o_tile);
}

// A lane has of a block dims `row` and row + 8, and heads 8 g + 2 quad and one more.
template <class T>
__device__ __forceinline__ void merge_block(f32 (&o)[T::kHeads / 2], const f32 (&o_tile)[T::kHeads / 2],
                                            const DecodeStorage<T>& smem, const SparseMlaLane& me) {
#pragma unroll
  for (int group = 0; group < T::kHeads / 8; ++group) {
    const float2 older = *reinterpret_cast<const float2*>(&smem.older[8 * group + 2 * me.quad]);
    const float2 newer = *reinterpret_cast<const float2*>(&smem.newer[8 * group + 2 * me.quad]);
#pragma unroll
    for (int i = 4 * group; i < 4 * group + 4; ++i)
      o[i] = merged(o[i], o_tile[i], i % 2 == 0 ? older.x : older.y, i % 2 == 0 ? newer.x : newer.y);
  }
}

template <class T>
__device__ __forceinline__ void store_block(const f32 (&o_tile)[T::kHeads / 2], f32* to, int heads,
                                            const SparseMlaLane& me) {
#pragma unroll
  for (int i = 0; i < T::kHeads / 2; ++i) {
    const int head = 8 * (i / 4) + 2 * me.quad + i % 2, dim = me.row + 8 * (i / 2 % 2);
    if (head < heads) to[head * kMlaLatent + dim] = o_tile[i];
  }
}

template <class T>
using DecodeOutput = f32[T::kApart ? 1 : 4][T::kHeads / 2];

// The output of one half of a warpgroup's dims, which have one scale.
template <class T, int kSecond>
__device__ __forceinline__ void add_half(DecodeOutput<T>& out, const DecodeStorage<T>& smem, int stage, f32* partial,
                                         int heads, const SparseMlaLane& me) {
  const u8* weights = T::kBytes && me.warpgroup == 1 ? smem.weights[0] : smem.keys[stage][8][0];
#pragma unroll
  for (int b = 2 * kSecond; b < 2 * kSecond + 2; ++b) {
    const int part = 4 * me.warpgroup + b;
    f32 o_tile[T::kHeads / 2];
    multiply_values<T>(o_tile, smem.keys[stage][part][0], weights);
    if constexpr (T::kApart)
      store_block<T>(o_tile, partial + part * 64, heads, me);
    else
      merge_block<T>(out[b], o_tile, smem, me);
  }
}

template <class T>
__device__ __forceinline__ void store_out(DecodeOutput<T>& out, const SparseMlaAttentionArgs& args, i64 token,
                                          i64 first_head, int heads, DecodeStorage<T>& smem, const SparseMlaLane& me) {
  u8* staging = smem.keys[0][0][0];  // by way of the first stage
  static_assert(T::kHeads * 2 * T::kVDim <= sizeof(smem.keys[0]));
#pragma unroll
  for (int b = 0; b < T::kValueParts / 2; ++b) {
#pragma unroll
    for (int i = 0; i < T::kHeads / 2; ++i)
      out[b][i] = __fmul_rn(out[b][i], smem.older[8 * (i / 4) + 2 * me.quad + i % 2]);
    stage_dims<T::kHeads, 2 * T::kVDim>(out[b], me.warpgroup * (T::kValueParts / 2) + b, staging, me);
  }
  sync_math<T>();
  store_lines<2 * T::kVDim>(staging, args.out.at(token, first_head, 0), args.out.stride[1], heads, T::kMathThreads);
}

template <class T>
__device__ __forceinline__ void attend(const SparseMlaAttentionArgs& args, DecodeStorage<T>& smem) {
  const SparseMlaLane me;
  const DecodePartial partial(args);
  const DecodeWork& work = smem.work;
  const f32 scale_log2 = __fmul_rn(args.scale, kLog2E);
  const int head = static_cast<int>(threadIdx.x);  // of the state
  const auto larger_of = [](f32 x, f32 y) { return fmaxf(x, y); };
  const auto sum_of = [](f32 x, f32 y) { return __fadd_rn(x, y); };
  load_queries<T>(args.q, work.token, work.first_head, smem);
  DecodeState state;
  DecodeOutput<T> out;
#pragma unroll
  for (auto& block : out) {
#pragma unroll
    for (f32& value : block) value = 0.0f;
  }
  RingPosition<T::kStages> at;
  for (int tile = work.first_tile; tile < work.last_tile; ++tile, at.advance()) {
    const DecodeScales<T> scales(smem.chosen, args.cache, tile * T::kTile + me.row);
    smem.ring.wait_full(at);
    ptx::fence_proxy_async_shared();  // the loader's keys, for wgmma
    f32 scores[T::kHalf / 2];
    multiply_queries<T>(scores, smem, at.stage, me.warpgroup, scales);
    scale_scores<T>(scores, scale_log2, scales.present[0], scales.present[1]);
    publish<T>(scores, smem.largest, me, larger_of);
    sync_math<T>();  // the largest scores are there, and both have read the rotated dims
#pragma unroll
    for (int h = 0; h < T::kOwn; ++h) {
      const f32 most = largest_of(smem.largest, me.warpgroup, me.head(h));
      const f32 base = most == -__builtin_inff() ? 0.0f : most;
      f32 &first = scores[4 * (h / 2) + h % 2], &second = scores[4 * (h / 2) + h % 2 + 2];
      first = ptx::ex2_approx_ftz(__fsub_rn(first, base));
      second = ptx::ex2_approx_ftz(__fsub_rn(second, base));
    }
    publish<T>(scores, smem.sums, me, sum_of);
    f32 m_tile = 0.0f;
    if (head < T::kHeads) {
      m_tile = largest_of(smem.largest, head / T::kHalf, head % T::kHalf);
      state.advance(m_tile);
      smem.older[head] = state.older;
      smem.newer[head] = state.newer;
    }
    store_weights<T, 0>(scores, scales, smem, at.stage, me);
    sync_math<T>();
    const i64 row = partial.row(work.token, tile, work.first_head);
    if (head < T::kHeads) {
      const auto& own = smem.sums[head / T::kHalf];
      f32 l_tile = own[0][head % T::kHalf];
#pragma unroll
      for (int warp = 1; warp < 4; ++warp) l_tile = __fadd_rn(l_tile, own[warp][head % T::kHalf]);
      state.add(l_tile);
      if (T::kApart && head < work.heads) {
        partial.sums[2 * (row + head)] = m_tile;
        partial.sums[2 * (row + head) + 1] = l_tile;
      }
    }
    f32* o_tile = partial.outs + row * kMlaLatent;
    add_half<T, 0>(out, smem, at.stage, o_tile, work.heads, me);
    if constexpr (T::kBytes) {
      sync_math<T>();  // all have read the weights of the first groups
      store_weights<T, 1>(scores, scales, smem, at.stage, me);
      sync_math<T>();
    }
    add_half<T, 1>(out, smem, at.stage, o_tile, work.heads, me);
    smem.ring.template release<1>(at, me.lane);
  }
  if constexpr (!T::kApart) {
    sync_math<T>();  // all have merged the last tile
    if (head < work.heads) smem.older[head] = state.finish(args, work.token, work.first_head + head);
    if (head >= work.heads && head < T::kHeads) smem.older[head] = 0.0f;
    sync_math<T>();
    store_out<T>(out, args, work.token, work.first_head, work.heads, smem, me);
  }
}

// ---- kernels ----

// Blocks: heads fastest, so that those that read the same keys run together; then tiles where they are dealt out.
template <class T>
__global__ __launch_bounds__(T::kThreads, 1)
void sparse_mla_decode_kernel(const __grid_constant__ SparseMlaAttentionArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<DecodeStorage<T>*>(smem_base);
  const i64 head_blocks = ceil_div(args.q.shape[1], i64{T::kHeads});
  const i64 tiles = T::kApart ? ceil_div(args.indices.shape[1], i64{T::kTile}) : 1, own = blockIdx.x / head_blocks;
  const i64 token = own / tiles, first_head = blockIdx.x % head_blocks * T::kHeads;
  const ChosenKeys chosen = chosen_keys(args, token);
  const int tile = static_cast<int>(own % tiles);
  if (T::kApart && tile >= chosen.tiles()) return;
  if (threadIdx.x == 0) {
    smem.chosen = chosen;
    smem.work = {token, first_head, tile, T::kApart ? tile + 1 : chosen.tiles(),
                 static_cast<int>(smaller(T::kHeads, args.q.shape[1] - first_head))};
    smem.ring.init(T::kLoaders, T::kMathThreads / 32);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= T::kMathThreads) {
    ptx::setmaxnreg_dec<T::kLoaderRegisters>();
    RingPosition<T::kStages> at;
    if constexpr (T::kBytes)
      load_codes<T>(chosen, args.cache, smem, at, smem.work.first_tile, smem.work.last_tile);
    else
      load_keys<T>(chosen, args.kv, smem, at, smem.work.first_tile, smem.work.last_tile);
  } else {
    ptx::setmaxnreg_inc<T::kMathRegisters>();
    attend<T>(args, smem);
  }
}

constexpr int kMergeThreads = 128;

// A block merges the tiles of a token and head; a thread has four columns.
__global__ __launch_bounds__(kMergeThreads)
void sparse_mla_merge_kernel(const __grid_constant__ SparseMlaAttentionArgs args) {
  const i64 token = blockIdx.x / args.q.shape[1], head = blockIdx.x % args.q.shape[1];
  const int tiles = chosen_keys(args, token).tiles();
  const DecodePartial partial(args);
  DecodeState state;
  float4 o = {};
#pragma unroll 4
  for (int tile = 0; tile < tiles; ++tile) {
    const i64 row = partial.row(token, tile, head);
    const float2 sums = *reinterpret_cast<const float2*>(partial.sums + 2 * row);
    const float4 o_tile = *reinterpret_cast<const float4*>(partial.outs + row * kMlaLatent + 4 * threadIdx.x);
    state.advance(sums.x);
    state.add(sums.y);
    o = {merged(o.x, o_tile.x, state.older, state.newer), merged(o.y, o_tile.y, state.older, state.newer),
         merged(o.z, o_tile.z, state.older, state.newer), merged(o.w, o_tile.w, state.older, state.newer)};
  }
  __shared__ f32 weight;
  if (threadIdx.x == 0) weight = state.finish(args, token, head);
  __syncthreads();
  const uint2 out = {ptx::cvt_rn_bf16x2_f32(__fmul_rn(o.y, weight), __fmul_rn(o.x, weight)),
                     ptx::cvt_rn_bf16x2_f32(__fmul_rn(o.w, weight), __fmul_rn(o.z, weight))};
  *reinterpret_cast<uint2*>(args.out.at(token, head, 4 * threadIdx.x)) = out;
}

// ---- launches ----

template <int kHeads, bool kBytes, bool kApart>
void launch_decode(const SparseMlaAttentionArgs& args, const Device& device, void* stream) {
  using T = DecodeTile<kHeads, kBytes, kApart>;
  constexpr int kSmemBytes = static_cast<int>(sizeof(DecodeStorage<T>));
  static_assert(kSmemBytes <= kMaxSmemBytes);
  const i64 tokens = args.q.shape[0], heads = args.q.shape[1];
  const i64 blocks = tokens * ceil_div(heads, i64{kHeads}) * (kApart ? ceil_div(args.indices.shape[1], i64{64}) : 1);
  require(blocks < i64{1} << 31, kOp, ": tokens times heads / ", kHeads, " must be below 2^31 on CUDA, got ", blocks);
  launch<sparse_mla_decode_kernel<T>>(
      kOp, device, {.blocks = dim3(static_cast<unsigned>(blocks)), .threads = T::kThreads, .smem_bytes = kSmemBytes},
      stream, args);
  if (!kApart) return;
  launch<sparse_mla_merge_kernel>(
      kOp, device, {.blocks = dim3(static_cast<unsigned>(tokens * heads)), .threads = kMergeThreads}, stream, args);
}

// Smaller blocks where heads are few, where blocks of 64 would leave half the SMs idle, and where scales and the
// running output of 64 heads together need more registers than there are.
template <bool kBytes, bool kApart>
void launch_for_heads(const SparseMlaAttentionArgs& args, const Device& device, void* stream) {
  const i64 heads = args.q.shape[1], blocks = args.q.shape[0] * ceil_div(heads, i64{64});
  if (heads <= 16) return launch_decode<16, kBytes, kApart>(args, device, stream);
  constexpr bool kNever64 = kBytes && !kApart;
  if (kNever64 || heads <= 32 || (!kApart && 2 * blocks <= device.sms))
    return launch_decode<32, kBytes, kApart>(args, device, stream);
  if constexpr (!kNever64) launch_decode<64, kBytes, kApart>(args, device, stream);
}

}  // namespace

void sparse_mla_decode_fast_cuda(const SparseMlaAttentionArgs& given, void* stream) {
  SparseMlaAttentionArgs args = given;
  const bool bytes = args.cache.bytes.exists();
  const i64 tokens = args.q.shape[0], heads = args.q.shape[1], topk = args.indices.shape[1];
  if (!bytes) args.kv = sparse_mla::rows_of(args.cache.values);
  sparse_mla::check_limits(kOp, args.q, args.kv, args.out.shape[2]);
  sparse_mla::check_cache_limits(kOp, args.cache);
  if (tokens == 0 || heads == 0) return;
  const Device device = require_sm90(kOp);
  const bool apart = sparse_mla_decode_deals_tiles(tokens, heads, topk);
  const i64 needed = sparse_mla_decode_fast_cuda_workspace_bytes(tokens, heads, topk);
  require(args.workspace.shape[0] >= needed, kOp, ": workspace must be u8[", needed, "] or longer; got u8[",
          args.workspace.shape[0], "]");
  if (bytes) {
    if (apart) return launch_for_heads<true, true>(args, device, stream);
    return launch_for_heads<true, false>(args, device, stream);
  }
  if (apart) return launch_for_heads<false, true>(args, device, stream);
  launch_for_heads<false, false>(args, device, stream);
}

}  // namespace glm5
