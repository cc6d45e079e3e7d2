// The emulator's descriptors and swizzles against CuTe's layout algebra: for every canonical layout of an operand, CuTe
// makes the descriptor and says where each element lies; the emulator must find the same bytes from the descriptor
// alone.
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include <cstdio>

#include "../csrc/wgmma_math.h"

namespace {

using namespace cute;
using glm5::emulator::chunk_addresses;
using glm5::emulator::decode_descriptor;

int failures = 0;
alignas(1024) unsigned char memory[64 * 1024];

// rows x 32 bytes of k, at step `block` along k of a tile of rows x 64 elements or more.
template <GMMA::Major kMajor, class T, class Atom, int kRows>
void compare(const char* name, Atom atom) {
  constexpr int kStep = 32 / sizeof(T), kDepth = 4 * kStep;
  const auto layout = tile_to_shape(atom, Shape<Int<kRows>, Int<kDepth>>{});
  const auto tile = make_tensor(make_smem_ptr(reinterpret_cast<T*>(memory)), layout);
  const auto first = local_tile(tile, Shape<Int<kRows>, Int<kStep>>{}, make_coord(Int<0>{}, Int<0>{}));
  const unsigned long long bits = GMMA::make_gmma_desc<kMajor>(first).desc_;
  const bool mn_major = kMajor == GMMA::Major::MN;
  const auto chunks = chunk_addresses(decode_descriptor(bits), mn_major, 0, kRows);
  int wrong = 0;
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kStep; ++k) {
      const long expected = reinterpret_cast<const unsigned char*>(&first(r, k)) - memory;
      const int byte = k * static_cast<int>(sizeof(T));
      const long found =
          mn_major ? chunks[k * (kRows / 8) + r / 8] + r % 8 * sizeof(T) : chunks[2 * r + byte / 16] + byte % 16;
      wrong += expected != found;
    }
  }
  if (wrong) std::printf("%s: %d of %d elements elsewhere\n", name, wrong, kRows * kStep);
  failures += wrong != 0;
}

}  // namespace

int main() {
  using b16 = cutlass::bfloat16_t;
  using b8 = cutlass::float_e4m3_t;
  constexpr auto K = GMMA::Major::K, MN = GMMA::Major::MN;
  compare<K, b16, GMMA::Layout_K_SW128_Atom<b16>, 128>("K 128B, bf16", {});
  compare<K, b16, GMMA::Layout_K_SW64_Atom<b16>, 128>("K 64B, bf16", {});
  compare<K, b16, GMMA::Layout_K_SW32_Atom<b16>, 64>("K 32B, bf16", {});
  compare<K, b16, GMMA::Layout_K_INTER_Atom<b16>, 64>("K none, bf16", {});
  compare<K, b8, GMMA::Layout_K_SW128_Atom<b8>, 64>("K 128B, e4m3", {});
  compare<K, b8, GMMA::Layout_K_SW64_Atom<b8>, 64>("K 64B, e4m3", {});
  compare<K, b8, GMMA::Layout_K_SW32_Atom<b8>, 128>("K 32B, e4m3", {});
  compare<K, b8, GMMA::Layout_K_INTER_Atom<b8>, 64>("K none, e4m3", {});
  compare<MN, b16, GMMA::Layout_MN_SW128_Atom<b16>, 128>("MN 128B, bf16", {});
  compare<MN, b16, GMMA::Layout_MN_SW64_Atom<b16>, 128>("MN 64B, bf16", {});
  compare<MN, b16, GMMA::Layout_MN_SW32_Atom<b16>, 64>("MN 32B, bf16", {});
  compare<MN, b16, GMMA::Layout_MN_INTER_Atom<b16>, 64>("MN none, bf16", {});
  std::printf("%d layouts differ\n", failures);
  return failures != 0;
}
