// Convolution by its definition in bfloat16, with Intel's AMX (Software Developer's Manual, volume 2:
// TDPBF16PS). A register holds 16 rows of 64 bytes; one instruction multiplies two of them, 16 x 32
// by 32 x 16 numbers, and adds to 16 x 16 floats: 512 products a cycle, where vectors of floats make
// 32. Winograd's filtering, which trades products for sums, should not pay then.
//
// Rows of an image become rows of a register as they lie in memory: positions are counted through
// the padded image, so that each element of the kernel is a distance of its own. What reaches over
// the end of a row is computed and left out; in a kernel's gradient it meets a zero, so that what is
// not a number spreads to other elements.
//
// Where the compiler is not to use it the instructions are emulated, bit for bit, which is for tests:
// with FER_JAX_EMULATED_AMX convolutions use the emulation.

#pragma once

#include "winograd.h"

#if defined(FER_JAX_EMULATED_AMX) || !defined(__linux__)
#elif defined(__AMX_BF16__) || defined(__AMXBF16__)  // Clang's name before its version 15
#define FER_JAX_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t kTile = 16;          // rows of a register, and pairs or floats in a row
constexpr int64_t kDepth = 2 * kTile;  // numbers of bfloat16 in a row: what one instruction sums over

#if !defined(FER_JAX_AMX)

inline bool has_amx() {
#if defined(FER_JAX_EMULATED_AMX)
  return true;
#else
  return false;
#endif
}

struct AmxScope {};

struct TileRegister {
  uint32_t rows[kTile][kTile];
};
inline thread_local TileRegister tile_registers[8];

template <int T>
inline void load_tile(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < kTile; ++i)
    std::memcpy(tile_registers[T].rows[i], static_cast<const char*>(from) + i * bytes, 64);
}
template <int T>
inline void store_tile(void* to, int64_t bytes) {
  for (int64_t i = 0; i < kTile; ++i)
    std::memcpy(static_cast<char*>(to) + i * bytes, tile_registers[T].rows[i], 64);
}
template <int T>
inline void zero_tile() {
  tile_registers[T] = {};
}

// A number too small to be normal counts as 0.
inline float flushed(float x) {
  return x > -std::numeric_limits<float>::min() && x < std::numeric_limits<float>::min() ? 0 : x;
}

// Even and odd numbers of the rows are summed apart, each product added with one rounding.
template <int C, int A, int B>
inline void multiply_tiles() {
  constexpr Pair kUpper = 0xffff0000;
  const auto number = [](Pair bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return flushed(x);
  };
  for (int64_t m = 0; m < kTile; ++m)
    for (int64_t n = 0; n < kTile; ++n) {
      float even = 0, odd = 0;
      for (int64_t k = 0; k < kTile; ++k) {
        const Pair a = tile_registers[A].rows[m][k], b = tile_registers[B].rows[k][n];
        even = flushed(__builtin_fmaf(number(a << 16), number(b << 16), even));
        odd = flushed(__builtin_fmaf(number(a & kUpper), number(b & kUpper), odd));
      }
      uint32_t& bits = tile_registers[C].rows[m][n];
      const float sum = flushed(number(bits) + flushed(even + odd));
      std::memcpy(&bits, &sum, sizeof sum);
    }
}

#else

// Whether the system lets this process use the registers; it has to be asked once.
inline bool has_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

// While it is there, registers have 16 rows of 64 bytes. A thread keeps that to itself, and XLA sets
// it to other things on the same threads: each task has a scope of its own.
class AmxScope {
 public:
  AmxScope() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~AmxScope() { asm volatile("tilerelease"); }
  AmxScope(const AmxScope&) = delete;
};

// Compilers' own functions do not take a template's argument as the number of a register, and GCC
// 12's do not say that they read memory.
template <int T>
inline void load_tile(const void* from, int64_t bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(bytes), "i"(T) : "memory");
}
template <int T>
inline void store_tile(void* to, int64_t bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(bytes), "i"(T) : "memory");
}
template <int T>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int C, int A, int B>
inline void multiply_tiles() {  // C += A B
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

inline int64_t rounded_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Sums of [A tiles, B tiles], at most 2 x 2, in registers 0 to 3.
template <int A, int B>
struct TileSums {
  static void zero() {
    zero_tile<0>();
    if constexpr (B > 1) zero_tile<1>();
    if constexpr (A > 1) zero_tile<2>();
    if constexpr (A > 1 && B > 1) zero_tile<3>();
  }
  static void load(const float* from, int64_t step) {
    load_tile<0>(from, step * 4);
    if constexpr (B > 1) load_tile<1>(from + kTile, step * 4);
    if constexpr (A > 1) load_tile<2>(from + kTile * step, step * 4);
    if constexpr (A > 1 && B > 1) load_tile<3>(from + kTile * step + kTile, step * 4);
  }
  static void store(float* to, int64_t step) {
    store_tile<0>(to, step * 4);
    if constexpr (B > 1) store_tile<1>(to + kTile, step * 4);
    if constexpr (A > 1) store_tile<2>(to + kTile * step, step * 4);
    if constexpr (A > 1 && B > 1) store_tile<3>(to + kTile * step + kTile, step * 4);
  }
  // Adds the products of a [rows, kDepth numbers] and b [kTile pairs of rows, columns].
  static void add(const uint16_t* a, int64_t a_step, const Pair* b, int64_t b_step) {
    load_tile<4>(a, a_step * 2);
    load_tile<6>(b, b_step * 4);
    multiply_tiles<0, 4, 6>();
    if constexpr (B > 1) {
      load_tile<7>(b + kTile, b_step * 4);
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (A > 1) {
      load_tile<5>(a + kTile * a_step, a_step * 2);
      multiply_tiles<2, 5, 6>();
    }
    if constexpr (A > 1 && B > 1) multiply_tiles<3, 5, 7>();
  }
};

// Calls work.run<A, B>(a, b) so that blocks of A x B tiles cover [rows, columns]. Columns are a
// multiple of kTile; rows are rounded up to one.
template <typename Work>
void cover_with_tiles(int64_t rows, int64_t columns, const Work& work) {
  for (int64_t a = 0; a < rows; a += 2 * kTile)
    for (int64_t b = 0; b < columns; b += 2 * kTile) {
      const bool tall = rows - a > kTile, wide = columns - b > kTile;
      if (tall && wide)
        work.template run<2, 2>(a, b);
      else if (tall)
        work.template run<2, 1>(a, b);
      else if (wide)
        work.template run<1, 2>(a, b);
      else
        work.template run<1, 1>(a, b);
    }
}

// A kernel for products of tiles: [kh kw, channels, f] in pairs of channels, whose number is rounded
// up with zeros.
class TileKernel {
 public:
  TileKernel(const Shape& s, const float* kernel)
      : s_(s), channels_(rounded_up(s.c, kDepth)),
        pairs_(Aligned<Pair>::zeros(s.kh * s.kw * channels_ / 2 * s.f)) {
    for (int64_t tap = 0; tap < s.kh * s.kw; ++tap)
      for (int64_t x = 0; x < s.c * s.f; x += kLanes)
        PairsOfRows::put(vector_at(kernel, tap * s.c * s.f + x), x / s.f, x % s.f, s.f,
                         pairs_.data() + tap * channels_ / 2 * s.f);
  }

  int64_t channels() const { return channels_; }
  const Pair* tap(int64_t i, int64_t j) const {
    return pairs_.data() + (i * s_.kw + j) * channels_ / 2 * s_.f;
  }

 private:
  Shape s_;
  int64_t channels_;
  Aligned<Pair> pairs_;
};

// Convolves images with a kernel; each task has its own.
class TileConvolution {
 public:
  TileConvolution(const Shape& s, const TileKernel& kernel)
      : s_(s), kernel_(kernel), sums_(2 * kTile * s.f),
        // The last tiles of a row of output reach over the image's end.
        image_(Aligned<uint16_t>::zeros((s.h * s.w + 2 * kTile * s.stride_w) * kernel.channels())) {}

  void run(const float* image, const float* bias, bool relu, float* out) {
    const int64_t channels = kernel_.channels();
    for (int64_t p = 0; p < s_.h * s_.w; ++p)
      for (int64_t c = 0; c < s_.c; c += kLanes)
        put_vector(image_.data(), p * channels + c, rounded(vector_at(image, p * s_.c + c)));
    const bool in_one = s_.stride_h == 1 && s_.stride_w == 1;
    const int64_t count = in_one ? (s_.oh - 1) * s_.w + s_.ow : s_.ow;
    for (int64_t y = 0; y < (in_one ? 1 : s_.oh); ++y)
      for (int64_t p = 0; p < count; p += 2 * kTile) {
        const int64_t rows = std::min(count - p, 2 * kTile);
        const int64_t first = y * s_.stride_h * s_.w + p * s_.stride_w;
        cover_with_tiles(rows, s_.f, Block{*this, image_.data() + first * channels});
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t at = y * s_.w + p + row;  // a row of output is as far apart as one of images
          if (at % s_.w < s_.ow) finish(row, bias, relu, out + (at / s_.w * s_.ow + at % s_.w) * s_.f);
        }
      }
  }

 private:
  struct Block {
    TileConvolution& of;
    const uint16_t* image;

    template <int A, int B>
    void run(int64_t a, int64_t b) const {
      const Shape& s = of.s_;
      const int64_t channels = of.kernel_.channels(), step = s.stride_w * channels;
      TileSums<A, B>::zero();
      for (int64_t i = 0; i < s.kh; ++i)
        for (int64_t j = 0; j < s.kw; ++j)
          for (int64_t c = 0; c < channels; c += kDepth)
            TileSums<A, B>::add(image + a * step + (i * s.w + j) * channels + c, step,
                                of.kernel_.tap(i, j) + c / 2 * s.f + b, s.f);
      TileSums<A, B>::store(of.sums_.data() + a * s.f + b, s.f);
    }
  };

  void finish(int64_t row, const float* bias, bool relu, float* out) const {
    const Vector least = least_output(relu);
    for (int64_t f = 0; f < s_.f; f += kLanes)
      put_output(out, f, vector_at(sums_.data(), row * s_.f + f) + vector_at(bias, f), least);
  }

  [[maybe_unused]] AmxScope scope_;
  Shape s_;
  const TileKernel& kernel_;
  AlignedBuffer sums_;  // [2 kTile, f]
  Aligned<uint16_t> image_;
};

// to[i, j] = from[j, i] of 16 x 16 pairs, rows of `to` so many pairs apart.
inline void transpose(const Pair (&from)[kTile][kTile], Pair* to, int64_t step) {
  for (int64_t i = 0; i < kTile; ++i)
    for (int64_t j = 0; j < kTile; ++j) to[i * step + j] = from[j][i];
}

// Sums a kernel's gradient over images, by positions in the image where an output begins.
class TileGradients {
 public:
  static int64_t size(const Shape& s) { return s.kh * s.kw * s.c * s.f; }

  TileGradients(const Shape& s, float* sums)
      : s_(s), sums_(sums),
        positions_(
            rounded_up((s.oh - 1) * s.stride_h * s.w + (s.ow - 1) * s.stride_w + 1, kDepth)),
        row_(rounded_up(std::max(s.h * s.w, positions_ + s.kh * s.w), kDepth)),
        columns_(Aligned<Pair>::zeros(s.c * row_ / 2)),
        grads_(Aligned<Pair>::zeros(positions_ / 2 * s.f)) {}

  void add(const float* image, const float* grad) {
    put_columns(image);
    for (int64_t y = 0; y < s_.oh; ++y)
      for (int64_t x = 0; x < s_.ow; ++x)
        for (int64_t f = 0; f < s_.f; f += kLanes)
          PairsOfRows::put(vector_at(grad, (y * s_.ow + x) * s_.f + f),
                           y * s_.stride_h * s_.w + x * s_.stride_w, f, s_.f, grads_.data());
    for (int64_t first = 0; first < positions_; first += kTogether)
      for (int64_t tap = 0; tap < s_.kh * s_.kw; ++tap)
        cover_with_tiles(s_.c, s_.f, Block{*this, tap, first});
  }

  void finish() {}

 private:
  // Positions whose numbers, of 32 channels and 32 features, stay in the first level of cache for
  // all elements of the kernel.
  static constexpr int64_t kTogether = 256;

  struct Block {
    TileGradients& of;
    int64_t tap, first;

    template <int A, int B>
    void run(int64_t a, int64_t b) const {
      const Shape& s = of.s_;
      const int64_t last = std::min(first + kTogether, of.positions_);
      const auto* columns = reinterpret_cast<const uint16_t*>(of.columns_.data());
      columns += a * of.row_ + tap / s.kw * s.w + tap % s.kw;
      float* sums = of.sums_ + (tap * s.c + a) * s.f + b;
      TileSums<A, B>::load(sums, s.f);
      for (int64_t p = first; p < last; p += kDepth)
        TileSums<A, B>::add(columns + p, of.row_, of.grads_.data() + p / 2 * s.f + b, s.f);
      TileSums<A, B>::store(sums, s.f);
    }
  };

  // columns_ = the image, a row for each channel.
  void put_columns(const float* image) {
    Pair block[kTile][kTile];
    for (int64_t first = 0; first < s_.h * s_.w; first += kDepth)
      for (int64_t c = 0; c < s_.c; c += kTile) {
        for (int64_t p = 0; p < kDepth; p += 2)
          for (int64_t lane = 0; lane < kTile; lane += kLanes) {
            const Pairs low = halves(image, first + p, c + lane);
            const Pairs high = halves(image, first + p + 1, c + lane);
            put_vector(block[p / 2], lane, low | high << 16);
          }
        transpose(block, columns_.data() + (c * row_ + first) / 2, row_ / 2);
      }
  }

  // Channels of a position, rounded; zeros behind the image.
  Pairs halves(const float* image, int64_t position, int64_t c) const {
    if (position >= s_.h * s_.w) return Pairs{};
    return __builtin_convertvector(rounded(vector_at(image, position * s_.c + c)), Pairs);
  }

  [[maybe_unused]] AmxScope scope_;
  Shape s_;
  float* sums_;
  int64_t positions_, row_;  // of outputs; of a channel in columns_, both in numbers
  Aligned<Pair> columns_;    // [c, row_ / 2]
  Aligned<Pair> grads_;      // [positions_ / 2, f]
};

}  // namespace
