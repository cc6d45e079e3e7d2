// Kernels that test the interpreter itself. Each has the signature of an Implementation's function.
#include <immintrin.h>

#include <cstdint>

using i64 = std::int64_t;

struct Args {
  const float *a, *b, *c;
  void* out;
  i64 n;
};

struct TileConfig {
  std::uint8_t palette, start_row, zero[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

static const Args& args_of(const void* args) { return *static_cast<const Args*>(args); }

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

// n: MXCSR, or 0 for the caller's. Seven results of 8 lanes each.
extern "C" void arithmetic_avx2(const void* args, i64 begin, i64 end, i64) {
  const Args& x = args_of(args);
  float* out = static_cast<float*>(x.out);
  const unsigned before = _mm_getcsr();
  if (x.n != 0) _mm_setcsr(static_cast<unsigned>(x.n));
  for (i64 i = begin; i < end; i += 8, out += 56) {
    const __m256 a = _mm256_loadu_ps(x.a + i), b = _mm256_loadu_ps(x.b + i), c = _mm256_loadu_ps(x.c + i);
    _mm256_storeu_ps(out, _mm256_fmadd_ps(a, b, c));
    _mm256_storeu_ps(out + 8, _mm256_div_ps(a, b));
    _mm256_storeu_ps(out + 16, _mm256_sqrt_ps(a));
    _mm256_storeu_ps(out + 24, _mm256_add_ps(a, b));
    _mm256_storeu_ps(out + 32, _mm256_mul_ps(a, b));
    _mm256_storeu_ps(out + 40, _mm256_max_ps(a, b));
    _mm256_storeu_ps(out + 48, _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
  }
  _mm_setcsr(before);
}

#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")

// The same by 16 lanes, stored in the order of arithmetic_avx2.
extern "C" void arithmetic_avx512(const void* args, i64 begin, i64 end, i64) {
  const Args& x = args_of(args);
  float* out = static_cast<float*>(x.out);
  const unsigned before = _mm_getcsr();
  if (x.n != 0) _mm_setcsr(static_cast<unsigned>(x.n));
  for (i64 i = begin; i < end; i += 16, out += 112) {
    const __m512 a = _mm512_loadu_ps(x.a + i), b = _mm512_loadu_ps(x.b + i), c = _mm512_loadu_ps(x.c + i);
    const __m256i half = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 results[7] = {_mm512_fmadd_ps(a, b, c), _mm512_div_ps(a, b), _mm512_sqrt_ps(a), _mm512_add_ps(a, b),
                               _mm512_mul_ps(a, b),      _mm512_max_ps(a, b), _mm512_cvtph_ps(half)};
    for (int r = 0; r < 7; ++r) {
      _mm256_storeu_ps(out + 8 * r, _mm512_castps512_ps256(results[r]));
      _mm256_storeu_ps(out + 56 + 8 * r, _mm512_extractf32x8_ps(results[r], 1));
    }
  }
  _mm_setcsr(before);
}

// out[i] = byte b[i] of the 128 bytes a, with a masked tail.
extern "C" void permute_bytes(const void* args, i64 begin, i64 end, i64) {
  const Args& x = args_of(args);
  const __m512i low = _mm512_loadu_si512(x.a), high = _mm512_loadu_si512(x.a + 16);
  for (i64 i = begin; i < end; i += 64) {
    const __mmask64 live = end - i >= 64 ? ~0ull : (1ull << (end - i)) - 1;
    const __m512i index = _mm512_maskz_loadu_epi8(live, reinterpret_cast<const char*>(x.b) + i);
    _mm512_mask_storeu_epi8(static_cast<char*>(x.out) + i, live, _mm512_permutex2var_epi8(low, index, high));
  }
}

extern "C" void misaligned(const void* args, i64, i64, i64) {
  __asm__ volatile("vmovaps 4(%0), %%zmm0" ::"r"(args_of(args).out) : "xmm0");
}

#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16")

// out[rows, columns] += a[rows, 2 * pairs] · b[pairs, columns, 2], with n = rows | pairs << 8 | columns << 16.
extern "C" void multiply_tiles(const void* args, i64 begin, i64 end, i64) {
  const Args& x = args_of(args);
  const int rows = x.n & 255, pairs = x.n >> 8 & 255, columns = x.n >> 16 & 255;
  TileConfig config = {};
  config.palette = 1;
  config.rows[0] = config.rows[1] = static_cast<std::uint8_t>(rows);
  config.rows[2] = static_cast<std::uint8_t>(pairs);
  config.row_bytes[0] = config.row_bytes[2] = static_cast<std::uint16_t>(4 * columns);
  config.row_bytes[1] = static_cast<std::uint16_t>(4 * pairs);
  // The intrinsic of gcc 12 says that it reads 8 bytes, and the stores to the others disappear.
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  for (i64 i = begin; i < end; ++i) {
    _tile_loadd(0, x.out, 4 * columns);
    _tile_loadd(1, x.a, 4 * pairs);
    _tile_stream_loadd(2, x.b, 4 * columns);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, x.out, 4 * columns);
  }
  _tile_release();
}

extern "C" void leave_tiles_behind(const void*, i64, i64, i64) {
  static const TileConfig config = {1, 0, {}, {64}, {16}};
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  _tile_zero(0);
}

extern "C" void no_configuration(const void*, i64, i64, i64) { _tile_zero(0); }

#pragma GCC pop_options

extern "C" void read_word(const void* args, i64, i64, i64) {
  const Args& x = args_of(args);
  *static_cast<volatile int*>(x.out) = *reinterpret_cast<const volatile int*>(x.a);
}

extern "C" void write_to_code(const void*, i64, i64, i64) { *reinterpret_cast<volatile int*>(&write_to_code) = 1; }
extern "C" void illegal_instruction(const void*, i64, i64, i64) { __asm__ volatile("ud2"); }
extern "C" void system_call(const void*, i64, i64, i64) { __asm__ volatile("syscall" ::: "rcx", "r11", "rax"); }
extern "C" void endless_stack(const void*, i64, i64, i64) { __asm__ volatile("1: push %rax\n jmp 1b"); }
extern "C" void endless_loop(const void*, i64, i64, i64) {
  for (;;) __asm__ volatile("");
}
