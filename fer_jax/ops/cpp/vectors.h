// Vectors of floats, and sums of outer products of two: all that convolutions are made of.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// Arrays are float32 and row-major: images [n, h, w, c], output [n, oh, ow, f], kernel
// [kh, kw, c, f], f a multiple of 16.

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // numbers in a vector
constexpr int kShort = 8;   // of the short vector: 8 x 2 sums and their input fit in 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kShort = 6;  // 6 x 2 in 16
#else
constexpr int kLanes = 4;
constexpr int kShort = 6;
#endif
constexpr int kLong = 2;  // vectors in the long one

// Before a loop over an array of vectors: GCC may unroll it too late to keep the array in registers.
// Where that changes nothing, or slows down as in loops with conditions, it is left out.
#define UNROLLED _Pragma("GCC unroll 36")

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Indices __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

// Two numbers in bfloat16, the upper half of a float each; the first is the lower half of a pair.
typedef uint32_t Pair;
typedef Pair Pairs __attribute__((vector_size(kLanes * sizeof(Pair))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

// Vectors anywhere in memory. Copied: Clang forgets in a template that a type is aligned to less.
template <typename V = Vector, typename Number>
inline V vector_at(const Number* numbers, int64_t offset) {
  V vector;
  std::memcpy(&vector, numbers + offset, sizeof(V));
  return vector;
}
template <typename V, typename Number>
inline void put_vector(Number* numbers, int64_t offset, const V& vector) {
  std::memcpy(numbers + offset, &vector, sizeof(V));
}

// Writes numbers of [-128, 127]. In two steps: GCC narrows to a quarter number by number.
inline void put_bytes(int8_t* bytes, int64_t offset, const Indices& numbers) {
  typedef int16_t Shorts __attribute__((vector_size(kLanes * sizeof(int16_t))));
  const Shorts shorts = __builtin_convertvector(numbers, Shorts);
  put_vector(bytes, offset, __builtin_convertvector(shorts, Bytes));
}

// Rounds to bfloat16: to nearest, ties to even; not a number stays so.
inline Halves rounded(const Vector& vector) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)vector);
#else
  const Pairs bits = (Pairs)vector;
  const Pairs nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(vector == vector ? nearest : bits >> 16 | 0x40, Halves);
#endif
}

// Floats with the same bits as a pair's numbers; a float's lower half is 0.
inline float first(Pair pair) {
  float number;
  pair <<= 16;
  std::memcpy(&number, &pair, sizeof number);
  return number;
}
inline float second(Pair pair) { return first(pair >> 16); }

// sum += the product, of pairs the products of both numbers.
inline void add_product(float number, const Vector& vector, Vector& sum) { sum += number * vector; }
inline void add_product(Pair pair, const Pairs& pairs, Vector& sum) {
#if defined(__AVX512BF16__)
  sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(Pairs{} + pair), (__m512bh)pairs);
#else
  sum += second(pair) * (Vector)(pairs & 0xffff0000) + first(pair) * (Vector)(pairs << 16);
#endif
}

template <typename Number>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = Vector;
};
template <>
struct VectorOf<Pair> {
  using Type = Pairs;
};

// The least number that a convolution's output may be.
inline Vector least_output(bool relu) {
  return Vector{} - (relu ? 0 : std::numeric_limits<float>::infinity());
}

// A sum, or what it is to be at least; not a number stays so.
inline Vector at_least(const Vector& sum, const Vector& least) { return sum < least ? least : sum; }

// A convolution. h and w count the padding too; rows outside [top, bottom) are padding.
struct Shape {
  int64_t n, h, w, c, oh, ow, f, kh, kw, stride_h, stride_w, top, bottom, left;
  int64_t real_w;
};

// Where an image's rows lie, without its padding.
struct RealRows {
  const float* first;
  int64_t step;  // numbers from row to row
};

// sums[a][b] += short[a] * long[b], `count` times, each time a step further. Numbers are floats or
// pairs.
template <int A, int B, typename Number>
inline void add_outer_products(const Number* shorts, int64_t spread, int64_t short_step,
                               const Number* longs, int64_t long_step, int64_t count,
                               Vector (&sums)[A][B]) {
  using Long = typename VectorOf<Number>::Type;
  for (int64_t i = 0; i < count; ++i) {
    Long long_[B];
    for (int b = 0; b < B; ++b) long_[b] = vector_at<Long>(longs, b * kLanes);
    for (int a = 0; a < A; ++a)
      for (int b = 0; b < B; ++b) add_product(shorts[a * spread], long_[b], sums[a][b]);
    shorts += short_step;
    longs += long_step;
  }
}

template <int A, int B>
inline void load(Vector (&sums)[A][B], const float* from, int64_t row) {
  UNROLLED
  for (int a = 0; a < A; ++a) {
    UNROLLED
    for (int b = 0; b < B; ++b) sums[a][b] = vector_at(from, a * row + b * kLanes);
  }
}

template <int A, int B>
inline void store(const Vector (&sums)[A][B], float* to, int64_t row) {
  UNROLLED
  for (int a = 0; a < A; ++a) {
    UNROLLED
    for (int b = 0; b < B; ++b) put_vector(to, a * row + b * kLanes, sums[a][b]);
  }
}

// Calls tile.run<A, B>(a, b) so that the blocks [a, a + A) x [b, b + B * kLanes) cover the plane.
template <int A, int B, typename Tile>
void cover_row(int64_t a, int64_t features, const Tile& tile) {
  int64_t b = 0;
  for (; b + B * kLanes <= features; b += B * kLanes) tile.template run<A, B>(a, b);
  if constexpr (B > 1)
    for (; b < features; b += kLanes) tile.template run<A, 1>(a, b);
}

template <int A, typename Tile>
void cover(int64_t from, int64_t to, int64_t features, const Tile& tile) {
  for (; from + A <= to; from += A) cover_row<A, kLong>(from, features, tile);
  if constexpr (A > 1)
    if (from < to) cover<A - 1>(from, to, features, tile);
}

// `count` numbers, which are anything to begin with. They start where a cache line does: a vector
// that lies in two lines takes twice as long to load.
template <typename Number>
class Aligned {
 public:
  explicit Aligned(int64_t count) : lines_(new Line[(count + kLine - 1) / kLine]) {}

  static Aligned zeros(int64_t count) {
    Aligned buffer(count);
    std::fill_n(buffer.data(), count, 0);
    return buffer;
  }

  // Not lines_[0].numbers: GCC warns of what goes beyond the first line.
  Number* data() { return reinterpret_cast<Number*>(lines_.get()); }
  const Number* data() const { return reinterpret_cast<const Number*>(lines_.get()); }

 private:
  static constexpr int64_t kLine = 64 / sizeof(Number);
  struct alignas(kLine * sizeof(Number)) Line {
    Number numbers[kLine];
  };
  std::unique_ptr<Line[]> lines_;
};
using AlignedBuffer = Aligned<float>;

}  // namespace
