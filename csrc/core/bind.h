// torch.Tensor -> Tensor<T, Rank>, without a copy and without knowing torch's C++.
//
// Where the tensor's type offers DLPack's C exchange API (torch 2.10 and later) its fields are read through that, in
// about 0.05 us; elsewhere through the tensor's Python attributes. Element type and rank are checked by identity,
// shapes and strides by the Python contract. Neither way notices requires_grad or fake tensors, so only registered ops
// come here.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>
#include <type_traits>

#include "core/error.h"
#include "core/indexer.h"
#include "core/tensor.h"

namespace glm5 {

// Decides the door: true for a CUDA tensor. A function of its own, so that a test build can answer differently.
bool runs_on_cuda(int dlpack_device_type);

namespace bind {

constexpr int kMaxRank = 8;

// What either way of reading yields.
struct View {
  void* data = nullptr;
  int device_type = 1, code = 0, bits = 0, rank = 0;
  i64 shape[kMaxRank] = {}, stride[kMaxRank] = {};
};

bool read_view(PyObject* tensor, View& view) noexcept;

// DLPack's type codes.
constexpr int kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kE4m3fn = 10;

template <class T>
constexpr bool matches(int code, int bits) {
  using U = std::remove_const_t<T>;
  if (bits != int{sizeof(U)} * 8) return false;
  if constexpr (std::is_same_v<U, f32> || std::is_same_v<U, f64> || std::is_same_v<U, f16>) return code == kFloat;
  if constexpr (std::is_same_v<U, bf16>) return code == kBfloat;
  if constexpr (std::is_same_v<U, e4m3>) return code == kE4m3fn;
  if constexpr (std::is_integral_v<U>) return code == (std::is_signed_v<U> ? kInt : kUInt);
  return false;
}

// A tensor as an argument of a binding: the view and the door it asks for.
template <class Typed>
struct Argument {
  Typed tensor{};
  bool on_cuda = false;
};

template <int Rank, class Typed>
void fill(const View& view, Typed& out) {
  for (int d = 0; d < Rank; ++d) {
    out.shape[d] = view.shape[d];
    // The stride of a dimension of one element means nothing; kernels may rely on the last being 1.
    out.stride[d] = d == Rank - 1 && view.shape[d] <= 1 ? 1 : view.stride[d];
  }
}

template <class T, int Rank>
bool take(const View& view, Tensor<T, Rank>& out) {
  if (view.rank != Rank || !matches<T>(view.code, view.bits)) return false;
  out.data = static_cast<T*>(view.data);
  fill<Rank>(view, out);
  return true;
}

template <int Rank>
bool take(const View& view, FloatTensor<Rank>& out) {
  if (view.rank != Rank) return false;
  if (matches<bf16>(view.code, view.bits)) out.dtype = Float::bf16;
  else if (matches<f16>(view.code, view.bits)) out.dtype = Float::f16;
  else if (matches<f32>(view.code, view.bits)) out.dtype = Float::f32;
  else return false;
  out.data = view.data;
  fill<Rank>(view, out);
  return true;
}

template <int Rank>
bool take(const View& view, IndexerTensor<Rank>& out) {
  if (view.rank != Rank) return false;
  out.is_e4m3 = matches<e4m3>(view.code, view.bits);
  if (!out.is_e4m3 && !matches<bf16>(view.code, view.bits)) return false;
  out.data = view.data;
  fill<Rank>(view, out);
  return true;
}

// For what only the CUDA kernels have, such as a launch of one given variant.
template <auto cuda, class... Args>
void run_on_cuda(const Args&... args) {
  if constexpr (GLM5_WITH_CUDA) {
    cuda(args...);
  } else {
    require(false, "this build has no CUDA kernels");
  }
}

// One door for every binding: the CUDA launcher or the CPU kernel. `cuda` is not named in a build without CUDA.
template <auto cpu, auto cuda, class Args>
void run(const Args& args, bool on_cuda, u64 stream) {
  if (!on_cuda) return cpu(args);
  if constexpr (GLM5_WITH_CUDA) {
    cuda(args, reinterpret_cast<void*>(stream));
  } else {
    require(false, "this build has no CUDA kernels");
  }
}

}  // namespace bind
}  // namespace glm5

namespace nanobind::detail {

template <class Typed>
struct type_caster<glm5::bind::Argument<Typed>> {
  NB_TYPE_CASTER(glm5::bind::Argument<Typed>, const_name("torch.Tensor"))

  bool from_python(handle source, uint8_t, cleanup_list*) noexcept {
    value = {};
    if (source.is_none()) return true;  // an optional tensor that was not given
    glm5::bind::View view;
    if (!glm5::bind::read_view(source.ptr(), view)) return false;
    value.on_cuda = glm5::runs_on_cuda(view.device_type);
    return glm5::bind::take(view, value.tensor);
  }
};

}  // namespace nanobind::detail
