#include <cstring>
#include <vector>

#include "core/fp8_check.h"
#include "cpu/gemm_door.h"
#include "ops/grouped_gemm/grouped_gemm.h"
#include "ops/grouped_gemm/groups.h"

namespace glm5 {

using grouped_gemm::Group;
using grouped_gemm::Groups;
using PlainWork = Groups<GemmArgs>;
template <class A>
using ScaledWork = Groups<ScaledGemmArgs<A>>;

namespace generic {
void grouped_gemm_pack(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_pack(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_pack(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void grouped_gemm_pack(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_pack(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_pack(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void grouped_gemm_multiply(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void grouped_gemm_pack(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_pack(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_pack(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const PlainWork&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<e4m3>&, i64 begin, i64 end, i64 thread);
void grouped_gemm_multiply(const ScaledWork<bf16>&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// AVX-512 reads what AVX2 packs.
template <class Args>
constexpr cpu::GemmKernels<Groups<Args>> kKernels[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::grouped_gemm_pack, amx::grouped_gemm_multiply},
    {cpu::Isa::avx512, avx2::grouped_gemm_pack, avx512::grouped_gemm_multiply},
    {cpu::Isa::avx2, avx2::grouped_gemm_pack, avx2::grouped_gemm_multiply},
#endif
    {cpu::Isa::generic, generic::grouped_gemm_pack, generic::grouped_gemm_multiply},
};

// The product of one expert, and how large it is.
template <class Args>
struct Product {
  Args args;
  i64 m, n, k;
};

// ---- Workspace: packed rows of one wave, then each thread's scratch ----

struct Capacity {
  i64 packed_bytes, scratch_bytes;
};

// Enough for `products` products that are no larger than m x n x k each.
Capacity capacity_of(i64 products, i64 m, i64 n, i64 k) {
  const bool with_amx = cpu::current_isa() == cpu::Isa::amx;
  const i64 packed_rows = smaller(m, with_amx ? cpu::kGemmTileRows : cpu::kGemmFewRows - 1);
  cpu::GemmPart part{0, 1, 0, packed_rows, n, k, packed_rows, cpu::kGemmTile, true, with_amx};
  const i64 one = cpu::gemm_packed_bytes(part);
  const i64 all = one * products * ceil_div(larger(m, 1), larger(packed_rows, 1));
  part.item_rows = smaller(m, with_amx ? cpu::kGemmTileRows : cpu::kGemmVectorRows);
  part.item_columns = larger(cpu::kGemmTileColumns, cpu::kGemmVectorColumns);
  return {smaller(all, larger(one, cpu::kGemmPackedBytes)), cpu::gemm_scratch_bytes(part)};
}

i64 workspace_bytes(const Capacity& capacity) {
  return capacity.packed_bytes + cpu::thread_count() * capacity.scratch_bytes + 64;
}

// ---- Waves: so many products at a time that their packed rows have room ----

template <class Args>
class Wave {
 public:
  Wave(const Tensor<u8, 1>& workspace, const Capacity& capacity)
      : packed_(cpu::aligned(workspace)), scratch_(packed_ + capacity.packed_bytes), capacity_(capacity) {}

  void add(const Args& args, const cpu::GemmPart& part) {
    const i64 bytes = cpu::gemm_packed_bytes(part);
    if (used_ + bytes > capacity_.packed_bytes) run();
    groups_.push_back({{args, part, packed_ + used_, scratch_, capacity_.scratch_bytes}, pack_items_, items_});
    used_ += bytes;
    pack_items_ += part.is_packed ? part.pack_items() : 0;
    items_ += part.items();
  }

  void run() {
    if (groups_.empty()) return;
    const i64 count = static_cast<i64>(groups_.size());
    const cpu::GemmPart part = groups_[0].task.part;
    groups_.push_back({{}, pack_items_, items_});
    const i64 pieces = smaller(items_, 4 * cpu::thread_count());
    const std::vector<i64> cuts = cuts_of(pieces);
    const Groups<Args> work{groups_.data(), count, cuts.data()};
    using Kernels = cpu::GemmKernels<Groups<Args>>;
    const i64 grain = (i64{1} << 16) / larger(1, part.pack_item_values());
    cpu::run_phase(kKernels<Args>, &Kernels::pack, work, part.with_amx, pack_items_, larger(1, grain));
    cpu::run_phase(kKernels<Args>, &Kernels::multiply, work, part.with_amx, pieces, 1);
    groups_.clear();
    used_ = pack_items_ = items_ = 0;
  }

 private:
  // Of an item: its multiply-adds, where bringing a column of b costs as much as 16 rows.
  static i64 cost_of(const cpu::GemmPart& part) {
    return (part.item_rows + 16) * part.item_columns * larger(1, part.blocks());
  }

  std::vector<i64> cuts_of(i64 pieces) const {
    const i64 count = static_cast<i64>(groups_.size()) - 1;
    i64 total = 0;
    for (i64 g = 0; g < count; ++g) total += cost_of(groups_[g].task.part) * groups_[g].task.part.items();
    std::vector<i64> cuts{0};
    i64 before = 0;  // the cost of the groups before g
    for (i64 g = 0; g < count; ++g) {
      const i64 cost = cost_of(groups_[g].task.part), items = groups_[g].task.part.items();
      for (; static_cast<i64>(cuts.size()) < pieces;) {
        const i64 target = total / pieces * static_cast<i64>(cuts.size());
        if (target > before + cost * items) break;
        cuts.push_back(groups_[g].first_item + (target - before) / cost);
      }
      before += cost * items;
    }
    cuts.resize(pieces, items_);
    cuts.push_back(items_);
    return cuts;
  }

  u8 *packed_, *scratch_;
  Capacity capacity_;
  std::vector<Group<Args>> groups_;
  i64 used_ = 0, pack_items_ = 0, items_ = 0;
};

// product_of(e) for each expert; those without rows or columns are passed over.
template <class Args, class ProductOf>
void run_experts(const char* op, i64 experts, const Tensor<u8, 1>& workspace, const Capacity& capacity,
                 const ProductOf& product_of) {
  cpu::check_workspace(op, workspace, workspace_bytes(capacity));
  const bool with_amx = cpu::current_isa() == cpu::Isa::amx;
  std::vector<Product<Args>> products;
  for (i64 e = 0; e < experts; ++e) {
    const Product<Args> product = product_of(e);
    if (product.m > 0 && product.n > 0) products.push_back(product);
  }
  Wave<Args> wave(workspace, capacity);
  for (const Product<Args>& product : products) {
    const i64 m = product.m;
    cpu::GemmPart part =
        cpu::gemm_part(static_cast<i64>(products.size()), m, product.n, product.k, with_amx, cpu::thread_count());
    part.batches = 1;
    for (const i64 step = part.rows; part.first_row < m; part.first_row += step) {
      part.rows = smaller(step, m - part.first_row);
      wave.add(product.args, part);
    }
  }
  wave.run();
}

// ---- The rows of experts ----

RowRange rows_of_expert(const GroupedGemmArgs& args, i64 e) {
  if (args.max_rows > 0) return {e * args.max_rows, e * args.max_rows + *args.offsets.at(e)};
  return {*args.offsets.at(e), *args.offsets.at(e + 1)};
}

void check_ranges(const char* op, const GroupedGemmArgs& args) {
  if (args.max_rows == 0) return check_fp8_offsets(op, args.offsets, args.out.shape[0]);
  for (i64 e = 0; e < args.experts(); ++e) {
    const i64 count = *args.offsets.at(e);
    require(count >= 0 && count <= args.max_rows, op, ": counts must be 0 .. ", args.max_rows, "; counts[", e, "] is ",
            count);
  }
}

// Zeros in the rows of out that lie in a range.
void clear(const FloatTensor<2>& out, const RowRange& range) {
  const i64 bytes = out.dtype == Float::f32 ? 4 : 2;
  cpu::parallel_for(range.end - range.begin, 64, [&](i64 begin, i64 end, i64) {
    for (i64 r = range.begin + begin; r < range.begin + end; ++r)
      std::memset(static_cast<u8*>(out.data) + r * out.stride[0] * bytes, 0, out.shape[1] * bytes);
  });
}

void clear_rest(const GroupedGemmArgs& args) {
  i64 done = 0;
  for (i64 e = 0; e < args.experts(); ++e) {
    const RowRange range = rows_of_expert(args, e);
    clear(args.out, {done, range.begin});
    done = range.end;
  }
  clear(args.out, {done, args.out.shape[0]});
}

// ---- Gathered rows: brought into expert order first, a small part of what the product reads ----

i64 gathered_bytes(i64 rows, i64 k) {
  return round_up(rows * k * 2, 64) + round_up(rows, kScaleRowsPad) * ceil_div(k, kFp8Group) * 4 + 64;
}

// The same call with rows and scales that lie in the order of out, at the end of the workspace.
GroupedGemmArgs gathered(const char* op, const GroupedGemmArgs& args, i64 used_bytes) {
  const i64 rows = args.out.shape[0], k = args.rows.shape[1], bytes = k * (args.rows.is_e4m3 ? 1 : 2);
  const i64 tokens = args.rows.shape[0], groups = ceil_div(k, kFp8Group), column = round_up(rows, kScaleRowsPad);
  u8* to = cpu::aligned(args.workspace) + round_up(used_bytes, 64);
  f32* scales = reinterpret_cast<f32*>(to + round_up(rows * k * 2, 64));
  for (i64 e = 0; e < args.experts(); ++e) {
    const RowRange range = rows_of_expert(args, e);
    for (i64 r = range.begin; r < range.end; ++r) {
      const i64 token = *args.row_tokens.at(r);
      require(token >= 0 && token < tokens, op, ": row_tokens must be rows of rows, 0 .. ", tokens - 1, "; row_tokens[",
              r, "] is ", token);
    }
    cpu::parallel_for(range.end - range.begin, 16, [&](i64 begin, i64 end, i64) {
      for (i64 r = range.begin + begin; r < range.begin + end; ++r) {
        const i64 token = *args.row_tokens.at(r);
        const i64 stride = args.rows.stride[0] * (args.rows.is_e4m3 ? 1 : 2);
        std::memcpy(to + r * bytes, static_cast<const u8*>(args.rows.data) + token * stride, bytes);
        for (i64 g = 0; g < groups && args.rows.is_e4m3; ++g) scales[g * column + r] = *args.row_scales.at(token, g);
      }
    });
  }
  GroupedGemmArgs moved = args;
  moved.rows = {to, args.rows.is_e4m3, {rows, k}, {k, 1}};
  moved.row_scales = {scales, {rows, groups}, {1, column}};
  return moved;
}

// ---- One expert as a product ----

template <class T, int Rank>
Tensor<T, Rank - 1> inner(const Tensor<T, Rank>& tensor, i64 outer) {
  Tensor<T, Rank - 1> one{tensor.data + outer * tensor.stride[0], {}, {}};
  for (int d = 1; d < Rank; ++d) {
    one.shape[d - 1] = tensor.shape[d];
    one.stride[d - 1] = tensor.stride[d];
  }
  return one;
}

FloatTensor<2> rows_of_out(const FloatTensor<2>& out, const RowRange& range) {
  const i64 bytes = out.dtype == Float::f32 ? 4 : 2;
  return {static_cast<u8*>(out.data) + range.begin * out.stride[0] * bytes,
          out.dtype,
          {range.end - range.begin, out.shape[1]},
          {out.stride[0], out.stride[1]}};
}

FloatTensor<3> one_batch(const Tensor<const bf16, 2>& tensor) {
  FloatTensor<3> batch{const_cast<bf16*>(tensor.data),
                       Float::bf16,
                       {1, tensor.shape[0], tensor.shape[1]},
                       {0, tensor.stride[0], tensor.stride[1]}};
  // A stride that is never taken may be anything; the kernels want one of them to be 1.
  for (int d = 1; d < 3; ++d) {
    if (batch.shape[d] <= 1) batch.stride[d] = 1;
  }
  return batch;
}
FloatTensor<3> one_batch(const FloatTensor<2>& tensor) {
  return {tensor.data, tensor.dtype, {1, tensor.shape[0], tensor.shape[1]}, {0, tensor.stride[0], tensor.stride[1]}};
}

// Rows or columns `range` of a matrix.
template <class T>
Tensor<const T, 2> cut(const Tensor<const T, 2>& tensor, int dim, const RowRange& range) {
  Tensor<const T, 2> part = tensor;
  part.data += range.begin * tensor.stride[dim];
  part.shape[dim] = range.end - range.begin;
  return part;
}

Product<GemmArgs> plain_product(const GroupedGemmArgs& args, i64 e) {
  const RowRange range = rows_of_expert(args, e);
  return {{one_batch(cut(args.rows.as<bf16>(), 0, range)),
           one_batch(inner(args.w.as<bf16>(), e)),
           args.accumulate,
           one_batch(rows_of_out(args.out, range)),
           {}},
          range.end - range.begin,
          args.w.shape[1],
          args.w.shape[2]};
}

template <class A>
Product<ScaledGemmArgs<A>> scaled_product(const GroupedGemmArgs& args, i64 e) {
  static constexpr f32 kOne = 1.0f;
  const RowRange range = rows_of_expert(args, e);
  const i64 rows = range.end - range.begin;
  Tensor<const f32, 2> scales{&kOne, {rows, ceil_div(args.w.shape[2], kFp8Group)}, {0, 0}};
  if constexpr (sizeof(A) == 1) scales = cut(args.row_scales, 0, range);
  return {{cut(args.rows.as<A>(), 0, range),
           scales,
           inner(args.w.as<e4m3>(), e),
           inner(args.w_scales, e),
           false,
           args.accumulate,
           rows_of_out(args.out, range),
           {}},
          rows,
          args.w.shape[1],
          args.w.shape[2]};
}

void check_types(const char* op, const FloatTensor<2>& out) {
  require(out.dtype != Float::f16, op, ": out must be bf16 or f32; got f16");
}

RowRange range_of(const Tensor<const i32, 1>& offsets, i64 e) { return {*offsets.at(e), *offsets.at(e + 1)}; }

Product<GemmArgs> plain_wgrad(const GroupedWgradArgs& args, i64 e) {
  const RowRange range = range_of(args.offsets, e);
  return {{one_batch(cut(args.a.as<bf16>(), 1, range)),
           one_batch(cut(args.b.as<bf16>(), 1, range)),
           args.accumulate,
           one_batch(matrix_of(args.out, e)),
           {}},
          args.out.shape[1],
          args.out.shape[2],
          range.end - range.begin};
}

Product<ScaledGemmArgs<e4m3>> scaled_wgrad(const GroupedWgradArgs& args, i64 e) {
  const RowRange range = range_of(args.offsets, e);
  const i64 rows = args.a.shape[1], first = first_group_of(args.offsets, rows, e);
  const RowRange groups{first, first + ceil_div(range.end - range.begin, kFp8Group)};
  return {{cut(args.a.as<e4m3>(), 1, range),
           cut(args.a_scales, 1, groups),
           cut(args.b.as<e4m3>(), 1, range),
           cut(args.b_scales, 1, groups),
           true,
           args.accumulate,
           matrix_of(args.out, e),
           {}},
          args.out.shape[1],
          args.out.shape[2],
          range.end - range.begin};
}

}  // namespace

i64 grouped_gemm_workspace_bytes(i64 experts, i64 rows, i64 n, i64 k, bool gathers) {
  return round_up(workspace_bytes(capacity_of(experts, rows, n, k)), 64) + (gathers ? gathered_bytes(rows, k) : 0);
}

i64 grouped_gemm_wgrad_workspace_bytes(i64 experts, i64 rows, i64 n, i64 k) {
  return workspace_bytes(capacity_of(experts, n, k, rows));
}

void grouped_gemm_cpu(const GroupedGemmArgs& given) {
  constexpr const char* kOp = "grouped_gemm";
  check_types(kOp, given.out);
  check_ranges(kOp, given);
  const i64 experts = given.experts(), rows = given.out.shape[0], n = given.w.shape[1], k = given.w.shape[2];
  if (given.clear_rest) clear_rest(given);
  const Capacity capacity = capacity_of(experts, rows, n, k);
  const bool gathers = given.row_tokens.exists();
  cpu::check_workspace(kOp, given.workspace, grouped_gemm_workspace_bytes(experts, rows, n, k, gathers));
  const GroupedGemmArgs args = gathers ? gathered(kOp, given, workspace_bytes(capacity)) : given;
  const auto run = [&]<class Args>(const auto& product_of) {
    run_experts<Args>(kOp, experts, args.workspace, capacity, [&](i64 e) { return product_of(args, e); });
  };
  if (!args.w.is_e4m3) return run.template operator()<GemmArgs>(plain_product);
  if (!args.rows.is_e4m3) return run.template operator()<ScaledGemmArgs<bf16>>(scaled_product<bf16>);
  run.template operator()<ScaledGemmArgs<e4m3>>(scaled_product<e4m3>);
}

void grouped_gemm_wgrad_cpu(const GroupedWgradArgs& args) {
  constexpr const char* kOp = "grouped_gemm_wgrad";
  check_types(kOp, matrix_of(args.out, 0));
  check_fp8_offsets(kOp, args.offsets, args.a.shape[1]);
  const i64 experts = args.out.shape[0];
  const Capacity capacity = capacity_of(experts, args.out.shape[1], args.out.shape[2], args.a.shape[1]);
  if (args.a.is_e4m3) {
    return run_experts<ScaledGemmArgs<e4m3>>(kOp, experts, args.workspace, capacity,
                                             [&](i64 e) { return scaled_wgrad(args, e); });
  }
  run_experts<GemmArgs>(kOp, experts, args.workspace, capacity, [&](i64 e) { return plain_wgrad(args, e); });
}

}  // namespace glm5
