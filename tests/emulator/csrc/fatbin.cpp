#include "fatbin.h"

#include <dlfcn.h>

#include <cstring>
#include <vector>

#include "report.h"

namespace glm5::emulator {
namespace {

constexpr u32 kWrapperMagic = 0x466243b1, kFatbinMagic = 0xBA55ED50;
constexpr u16 kPtx = 1;
constexpr u64 kZstd = 0x8000, kLz4 = 0x2000;
constexpr u32 kArchitecture = 90;

template <class T>
T at(const u8* data, size_t offset) {
  T value;
  std::memcpy(&value, data + offset, sizeof value);
  return value;
}

// One LZ4 block: sequences of literals and a match further back.
std::string unpack_lz4(const u8* from, size_t bytes, size_t unpacked) {
  std::string out;
  out.reserve(unpacked);
  const u8* end = from + bytes;
  const auto length = [&](size_t nibble) {
    size_t total = nibble;
    if (nibble == 15)
      while (from < end) {
        const u8 more = *from++;
        total += more;
        if (more != 255) break;
      }
    return total;
  };
  while (from < end) {
    const u8 token = *from++;
    const size_t literals = length(token >> 4);
    if (literals > static_cast<size_t>(end - from)) refuse("the LZ4 block of a fat binary is damaged");
    out.append(reinterpret_cast<const char*>(from), literals);
    from += literals;
    if (end - from < 2) break;
    const size_t distance = at<u16>(from, 0);
    from += 2;
    const size_t matched = length(token & 15) + 4;
    if (distance == 0 || distance > out.size()) refuse("the LZ4 block of a fat binary is damaged");
    for (size_t i = 0; i < matched; ++i) out += out[out.size() - distance];
  }
  return out;
}

std::string unpack_zstd(const u8* from, size_t bytes, size_t unpacked) {
  void* library = dlopen("libzstd.so.1", RTLD_NOW);
  if (library == nullptr)
    refuse("the PTX is compressed with zstd and libzstd.so.1 is not here; compile with --no-compress");
  using Decompress = size_t (*)(void*, size_t, const void*, size_t);
  const auto decompress = reinterpret_cast<Decompress>(dlsym(library, "ZSTD_decompress"));
  if (decompress == nullptr) refuse("libzstd.so.1 has no ZSTD_decompress");
  std::string out(unpacked, '\0');
  const size_t written = decompress(out.data(), out.size(), from, bytes);
  if (written != unpacked) refuse("the zstd frame of a fat binary is damaged");
  return out;
}

}  // namespace

std::string ptx_of_fatbin(const void* wrapper) {
  const auto* bytes = static_cast<const u8*>(wrapper);
  if (at<u32>(bytes, 0) != kWrapperMagic) refuse("this is no fat binary of nvcc");
  const u8* data = at<const u8*>(bytes, 8);
  if (at<u32>(data, 0) != kFatbinMagic) refuse("this is no fat binary of nvcc");
  const u8* entry = data + at<u16>(data, 6);
  const u8* end = entry + at<u64>(data, 8);
  bool has_code = false;
  u32 other = 0;
  while (entry < end) {
    const u16 kind = at<u16>(entry, 0);
    const u64 header = at<u32>(entry, 4), padded = at<u64>(entry, 8), compressed = at<u32>(entry, 16);
    const u64 flags = at<u64>(entry, 40), unpacked = at<u64>(entry, 56);
    const u32 architecture = at<u32>(entry, 28);
    has_code = has_code || kind != kPtx;
    if (kind == kPtx && architecture != kArchitecture) other = architecture;
    if (kind == kPtx && architecture == kArchitecture) {
      const u8* payload = entry + header;
      std::string text = flags & kZstd  ? unpack_zstd(payload, compressed ? compressed : padded, unpacked)
                         : flags & kLz4 ? unpack_lz4(payload, compressed, unpacked)
                                        : std::string(reinterpret_cast<const char*>(payload), padded);
      if (const auto nul = text.find('\0'); nul != std::string::npos) text.resize(nul);
      return text;
    }
    entry += header + padded;
  }
  if (other) refuse("the program has PTX of sm_", other, " and none of sm_90a, which is what the emulator executes");
  refuse(has_code ? "the program has machine code and no PTX: compile with code=[sm_90a,compute_90a]"
                  : "the program has no device code");
}

}  // namespace glm5::emulator
