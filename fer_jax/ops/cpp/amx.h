// Convolution by its definition in bfloat16, with Intel's AMX (Software Developer's Manual, volume 2:
// TDPBF16PS). A register holds 16 rows of 64 bytes; one instruction multiplies two of them, 16 x 32
// by 32 x 16 numbers, and adds to 16 x 16 floats: 512 products a cycle, where vectors of floats make
// 32. Winograd's filtering, which trades products for sums, does not pay then.
//
// Rows of an image become rows of a register as they lie in memory: positions are counted through
// the padded image, so that each element of the kernel is a distance of its own. What reaches over
// the end of a row is computed and left out; in a kernel's gradient it meets a zero, so that what is
// not a number spreads to other elements.
//
// Where the compiler is not to use it the instructions are emulated, bit for bit, which is for tests:
// with FER_JAX_EMULATED_AMX convolutions use the emulation.

#pragma once

#include <vector>

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
constexpr int64_t kSide = 2 * kTile;   // rows, and floats in a row, of a block of registers

// A register is stored, needed or not, after so many steps of four products: on the Xeon that this was
// written on, the first store after more than 32 stalls, whatever it stores.
constexpr int64_t kStepsToStore = 16;

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

// How long the side of a block is that begins there: the last may be shorter.
inline int64_t side_at(int64_t first, int64_t size) { return std::min(kSide, size - first); }

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
  for (int64_t a = 0; a < rows; a += kSide)
    for (int64_t b = 0; b < columns; b += kSide) {
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

// A kernel for products of tiles: for each panel of 32 features, the last may have 16, [kh kw,
// channels, features] in pairs of channels, whose number is rounded up with zeros. A block of tiles
// reads it from the beginning to the end, which processors fetch ahead.
class TileKernel {
 public:
  TileKernel(const Shape& s, const float* kernel)
      : s_(s), channels_(rounded_up(s.c, kDepth)),
        pairs_(Aligned<Pair>::zeros(s.kh * s.kw * channels_ / 2 * s.f)) {
    for (int64_t tap = 0; tap < s.kh * s.kw; ++tap)
      for (int64_t x = 0; x < s.c * s.f; x += kLanes) {
        const int64_t f = x % s.f, first = f / kSide * kSide, columns = side_at(first, s.f);
        PairsOfRows::put(vector_at(kernel, tap * s.c * s.f + x), x / s.f, f - first, columns,
                         pairs_.data() + panel_at(first) + tap * channels_ / 2 * columns);
      }
  }

  int64_t channels() const { return channels_; }
  const Pair* panel(int64_t first) const { return pairs_.data() + panel_at(first); }

 private:
  int64_t panel_at(int64_t first) const { return s_.kh * s_.kw * channels_ / 2 * first; }

  Shape s_;
  int64_t channels_;
  Aligned<Pair> pairs_;
};

// A batch's output of more bytes counts as one that the cache forgets before it is read again: twice
// the second level of the processor that this was measured on.
constexpr int64_t kPastCacheBytes = 1 << 22;

// Writes a vector past the cache, without reading what was there; the pointer is a multiple of 64.
inline void put_past_cache(float* to, const Vector& vector) {
#if defined(__AVX512BF16__)
  _mm512_stream_ps(to, (__m512)vector);
#else
  put_vector(to, 0, vector);
#endif
}

// What was written past the cache is there for other threads too.
inline void settle_past_cache() {
#if defined(__AVX512BF16__)
  _mm_sfence();
#endif
}

// Convolves images with a kernel; each task has its own. With `past_cache` outputs are written past
// the cache, which spares reading what was there.
class TileConvolution {
 public:
  TileConvolution(const Shape& s, const TileKernel& kernel, bool past_cache)
      : s_(s), kernel_(kernel), past_cache_(past_cache), sums_(kSide * s.f),
        // The last tiles of a row of output reach over the image's end.
        image_(Aligned<uint16_t>::zeros((s.h * s.w + kSide * s.stride_w) * kernel.channels())) {}

  void run(const RealRows& image, const float* bias, bool relu, float* out) {
    const int64_t channels = kernel_.channels();
    put_image(image);
    const bool in_one = s_.stride_h == 1 && s_.stride_w == 1;
    const int64_t count = in_one ? (s_.oh - 1) * s_.w + s_.ow : s_.ow;
    const Vector least = least_output(relu);
    for (int64_t y = 0; y < (in_one ? 1 : s_.oh); ++y) {
      int64_t x = 0, row_y = y;  // of an output: a row is as far from the next as one of images
      for (int64_t p = 0; p < count; p += kSide) {
        const int64_t rows = side_at(p, count);
        const int64_t first = y * s_.stride_h * s_.w + p * s_.stride_w;
        cover_with_tiles(rows, s_.f, Block{*this, image_.data() + first * channels});
        for (int64_t row = 0; row < rows; ++row) {
          if (x < s_.ow) finish(row, bias, least, out + (row_y * s_.ow + x) * s_.f);
          if (++x == s_.w) x = 0, ++row_y;
        }
      }
    }
    if (past_cache_) settle_past_cache();
  }

 private:
  struct Block {
    TileConvolution& of;
    const uint16_t* image;

    template <int A, int B>
    void run(int64_t a, int64_t b) const {
      const Shape& s = of.s_;
      const int64_t channels = of.kernel_.channels(), step = s.stride_w * channels;
      const int64_t height = s.kh, width = s.kw * channels, row = s.w * channels;
      const uint16_t* from = image + a * step;
      const Pair* kernel = of.kernel_.panel(b);
      float* unused = of.unused_.data();
      int64_t steps = 0;
      TileSums<A, B>::zero();
      for (int64_t i = 0; i < height; ++i, from += row)
        for (int64_t x = 0; x < width; x += kDepth, kernel += B * kTile * kTile) {
          TileSums<A, B>::add(from + x, step, kernel, B * kTile);
          if (++steps % kStepsToStore == 0) store_tile<4>(unused, 64);
        }
      TileSums<A, B>::store(of.sums_.data() + a * s.f + b, s.f);
    }
  };

  // image_ = the image; its padding stays zero.
  void put_image(const RealRows& image) {
    const int64_t channels = kernel_.channels();
    for (int64_t y = s_.top; y < s_.bottom; ++y) {
      const float* from = image.first + (y - s_.top) * image.step;
      uint16_t* to = image_.data() + (y * s_.w + s_.left) * channels;
      for (int64_t x = 0; x < s_.real_w; ++x, from += s_.c, to += channels)
        for (int64_t c = 0; c < s_.c; c += kLanes) put_vector(to, c, rounded(vector_at(from, c)));
    }
  }

  void finish(int64_t row, const float* bias, const Vector& least, float* out) const {
    for (int64_t f = 0; f < s_.f; f += kLanes) {
      const Vector sum = vector_at(sums_.data(), row * s_.f + f) + vector_at(bias, f);
      const Vector output = at_least(sum, least);
      if (past_cache_)
        put_past_cache(out + f, output);
      else
        put_vector(out, f, output);
    }
  }

  [[maybe_unused]] AmxScope scope_;
  Shape s_;
  const TileKernel& kernel_;
  bool past_cache_;
  AlignedBuffer sums_;  // [kSide, f]
  AlignedBuffer unused_{kTile * kTile};
  Aligned<uint16_t> image_;
};

#if defined(__AVX512F__) && defined(__has_builtin)  // a row of a register is a vector
#if __has_builtin(__builtin_shufflevector)
#define FER_JAX_SHUFFLES
#endif
#endif

typedef Pair TileSquare[kTile][kTile];

#if defined(FER_JAX_SHUFFLES)
// Of each quarter of two rows the first half, or the second, side by side.
inline Pairs first_halves(const Pairs& a, const Pairs& b) {
  return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
inline Pairs second_halves(const Pairs& a, const Pairs& b) {
  return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
inline Pairs even_quarters(const Pairs& a, const Pairs& b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
}
inline Pairs odd_quarters(const Pairs& a, const Pairs& b) {
  return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
#endif

// to[i, j] = from[j, i] of 16 x 16 pairs, rows of `to` so many pairs apart.
inline void transpose(const TileSquare& from, Pair* to, int64_t step) {
#if defined(FER_JAX_SHUFFLES)
  // First within blocks of 4 x 4: blocks[i + j] has the columns j, j + 4, j + 8, j + 12 of rows i to i + 3.
  Pairs blocks[kTile];
  UNROLLED
  for (int i = 0; i < kTile; i += 4) {
    Pairs low[2], high[2];  // the first and the last two columns of blocks, of two rows each
    UNROLLED
    for (int j = 0; j < 2; ++j) {
      const Pairs a = vector_at<Pairs>(from[i + 2 * j], 0);
      const Pairs b = vector_at<Pairs>(from[i + 2 * j + 1], 0);
      low[j] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
      high[j] =
          __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    blocks[i] = first_halves(low[0], low[1]);
    blocks[i + 1] = second_halves(low[0], low[1]);
    blocks[i + 2] = first_halves(high[0], high[1]);
    blocks[i + 3] = second_halves(high[0], high[1]);
  }
  UNROLLED
  for (int j = 0; j < 4; ++j) {
    const Pairs a = even_quarters(blocks[j], blocks[4 + j]);
    const Pairs b = even_quarters(blocks[8 + j], blocks[12 + j]);
    const Pairs c = odd_quarters(blocks[j], blocks[4 + j]);
    const Pairs d = odd_quarters(blocks[8 + j], blocks[12 + j]);
    put_vector(to, j * step, even_quarters(a, b));
    put_vector(to, (4 + j) * step, even_quarters(c, d));
    put_vector(to, (8 + j) * step, odd_quarters(a, b));
    put_vector(to, (12 + j) * step, odd_quarters(c, d));
  }
#else
  for (int64_t i = 0; i < kTile; ++i)
    for (int64_t j = 0; j < kTile; ++j)
      std::memcpy(to + i * step + j, &from[j][i], sizeof(Pair));  // `to` may be floats
#endif
}

// Sums a kernel's gradient over images, by positions in the image where an output begins. Of the two
// operands one has a row for each channel and the other one for each pair of positions. The first are
// the outputs', because they do not move with the element of the kernel: rows that do would lie in two
// cache lines. Small images are stacked: one has too few positions to pay for loading the sums.
class TileGradients {
 public:
  static int64_t size(const Shape& s) { return s.kh * s.kw * s.c * s.f; }

  TileGradients(const Shape& s, float* sums)
      : s_(s), sums_(sums), slot_(rounded_up(s.h * s.w, 2)),
        ends_(rounded_up((s.oh - 1) * s.stride_h * s.w + (s.ow - 1) * s.stride_w + 1, 2)),
        slots_(std::clamp<int64_t>(kTogether / slot_, 1, std::max<int64_t>(s.n, 1))),
        positions_(rounded_up(slots_ * slot_, kDepth)),
        reached_(positions_ + rounded_up(s.kh * s.w, 2)),
        // An odd number of cache lines: rows a power of two apart push each other out.
        row_((positions_ / kDepth / 2 * 2 + 3) * kDepth),
        grads_(Aligned<Pair>::zeros(s.f * row_ / 2)),
        images_(Aligned<Pair>::zeros(reached_ * s.c)),
        zeros_(AlignedBuffer::zeros(std::max(s.c, s.f))),
        pixels_(slot_ + 1, -1), outputs_(rounded_up(slot_, kDepth), -1) {
    for (int64_t y = s.top; y < s.bottom; ++y)
      for (int64_t x = 0; x < s.real_w; ++x)
        pixels_[y * s.w + s.left + x] = ((y - s.top) * s.real_w + x) * s.c;
    for (int64_t y = 0; y < s.oh; ++y)
      for (int64_t x = 0; x < s.ow; ++x)
        outputs_[y * s.stride_h * s.w + x * s.stride_w] = (y * s.ow + x) * s.f;
  }

  template <typename Images>
  void add(Images& images, int64_t i, const float* grad) {
    const float* image = images.unpadded(i);
    const int64_t at = filled_ * slot_;
    // A part of a large image is summed up while it is in the cache.
    for (int64_t first = 0, ready = 0; first < ends_; first += kTogether) {
      const int64_t last = std::min(first + kTogether, ends_);
      const int64_t needed = std::min(last + s_.kh * s_.w, slot_);
      put_image(image, ready, needed, at);
      put_grads(grad, first, last, at);
      if (slots_ == 1) add_products(first, last);
      ready = needed;
    }
    if (slots_ > 1 && ++filled_ == slots_) finish();
  }

  // To be called after the last image.
  void finish() {
    if (filled_ == 0) return;
    const int64_t last = (filled_ - 1) * slot_ + ends_, end = rounded_up(last, kDepth);
    for (int64_t f = 0; f < s_.f; ++f)  // what the stack before has left there
      std::fill_n(grads_.data() + (f * row_ + last) / 2, (end - last) / 2, 0);
    add_products(0, last);
    filled_ = 0;
  }

  // A kernel's gradient of its sums, which stand in blocks of 32 features x 32 channels, the last may
  // be smaller: [kh kw, features, channels] of each.
  static void unpack(const Shape& s, const float* sums, float* kernel) {
    TileSquare square;
    for (int64_t f = 0; f < s.f; f += kTile)
      for (int64_t c = 0; c < s.c; c += kTile) {
        const int64_t a = f / kSide * kSide, b = c / kSide * kSide;
        const int64_t height = side_at(a, s.f), width = side_at(b, s.c);
        const float* from = sums + block_at(s, a, b) + (f - a) * width + c - b;
        for (int64_t tap = 0; tap < s.kh * s.kw; ++tap, from += height * width) {
          for (int64_t i = 0; i < kTile; ++i)
            std::memcpy(square[i], from + i * width, sizeof square[i]);
          transpose(square, reinterpret_cast<Pair*>(kernel + (tap * s.c + c) * s.f + f), s.f);
        }
      }
  }

 private:
  // Positions that are summed up together; of smaller images as many are stacked. Their numbers, of 32
  // channels and 32 features, stay in the first level of cache for all elements of the kernel.
  static constexpr int64_t kTogether = 256;
  static_assert(kTogether / kDepth <= kStepsToStore);

  void add_products(int64_t first, int64_t last) {
    cover_with_tiles(s_.f, s_.c, Block{*this, first, rounded_up(last, kDepth)});
  }

  static int64_t block_at(const Shape& s, int64_t a, int64_t b) {
    return s.kh * s.kw * (a * s.c + side_at(a, s.f) * b);
  }

  struct Block {
    TileGradients& of;
    int64_t first, end;

    template <int A, int B>
    void run(int64_t a, int64_t b) const {
      const Shape& s = of.s_;
      constexpr int64_t width = B * kTile;
      const int64_t row = of.row_;
      const auto* grads = reinterpret_cast<const uint16_t*>(of.grads_.data()) + a * row;
      float* sums = of.sums_ + block_at(s, a, b);
      for (int64_t tap = 0; tap < s.kh * s.kw; ++tap, sums += A * kTile * width) {
        const int64_t shift = tap / s.kw * s.w + tap % s.kw;
        const Pair* images = of.image_panel(shift % 2, b) + shift / 2 * width;
        TileSums<A, B>::load(sums, width);
        for (int64_t p = first; p < end; p += kDepth)
          TileSums<A, B>::add(grads + p, row, images + p / 2 * width, width);
        TileSums<A, B>::store(sums, width);
      }
    }
  };

  // images_ = [from, to) of the image's positions, and once more from the next one on; the image begins
  // at position `at`.
  void put_image(const float* image, int64_t from, int64_t to, int64_t at) {
    for (int64_t p = from; p < to; ++p) {
      const float *low = at_position(pixels_, p, image), *high = at_position(pixels_, p + 1, image);
      for (int64_t first = 0; first < s_.c; first += kSide) {
        const int64_t width = side_at(first, s_.c);
        Pair* pairs = image_panel(p % 2, first) + (at + p) / 2 * width;
        for (int64_t lane = 0; lane < width; lane += kLanes)
          put_vector(pairs, lane, pairs_of(low + first + lane, high + first + lane));
      }
    }
  }

  // Pairs of positions that begin with an even one or an odd one, kept as kernels are.
  Pair* image_panel(int64_t odd, int64_t first) {
    return images_.data() + (odd * s_.c + first) * reached_ / 2;
  }

  // grads_ = [from, to) of the positions of an output's gradient, zeros where no output begins.
  void put_grads(const float* grad, int64_t from, int64_t to, int64_t at) {
    TileSquare square;
    for (int64_t first = from; first < to; first += kDepth)
      for (int64_t f = 0; f < s_.f; f += kTile) {
        for (int64_t p = 0; p < kDepth; p += 2)
          for (int64_t lane = 0; lane < kTile; lane += kLanes)
            put_vector(square[p / 2], lane,
                       pairs_of(at_position(outputs_, first + p, grad) + f + lane,
                                at_position(outputs_, first + p + 1, grad) + f + lane));
        transpose(square, grads_.data() + (f * row_ + at + first) / 2, row_ / 2);
      }
  }

  const float* at_position(const std::vector<int64_t>& offsets, int64_t p, const float* numbers) const {
    return offsets[p] < 0 ? zeros_.data() : numbers + offsets[p];
  }

  static Pairs pairs_of(const float* low, const float* high) {
    return __builtin_convertvector(rounded(vector_at(low, 0)), Pairs) |
           __builtin_convertvector(rounded(vector_at(high, 0)), Pairs) << 16;
  }

  [[maybe_unused]] AmxScope scope_;
  Shape s_;
  float* sums_;
  int64_t slot_;         // positions of an image, its padding too, an even number
  int64_t ends_;         // of these up to the last where an output begins, an even number
  int64_t slots_;        // images in a stack
  int64_t filled_ = 0;   // of which are there
  int64_t positions_;    // of a stack
  int64_t reached_;      // positions of images_
  int64_t row_;          // numbers of a channel in grads_
  Aligned<Pair> grads_;  // [f, row_ / 2]
  Aligned<Pair> images_;  // [2, reached_ / 2, c] in panels
  AlignedBuffer zeros_;
  std::vector<int64_t> pixels_, outputs_;  // where a position's channels begin, -1: nowhere
};

}  // namespace
