// 3x3 convolution with strides of 1 by Winograd's minimal filtering F(m x m, 3x3) (Lavin and Gray,
// "Fast Algorithms for Convolutional Neural Networks", 2016).
//
// The output is cut into tiles of m x m. With g a filter and d the part of an image behind a tile,
// m + 2 wide, the tile is A' [(G g G') * (B' d B)] A, the product taken element by element and
// summed over channels: (m + 2)^2 multiplications where the definition has 9 m^2, 16 for 36 with
// m = 2, 25 for 81 with m = 3, 36 for 144 with m = 4. For each of these elements of the transform
// domain that sum is a product of matrices, [tiles, c] by [c, f]. Gradients by the kernel are the
// transpose of all that. What is not a number spreads over its tile.
//
// These products are of float32, or of what is rounded to bfloat16 for them; transforms and sums are
// float32 in both.

#pragma once

#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

// The transforms of vectors for tiles of M.
template <int M>
struct Filtering;

template <>
struct Filtering<2> {
  static void image(const Vector* d, Vector* to) {  // B' d
    to[0] = d[0] - d[2];
    to[1] = d[1] + d[2];
    to[2] = d[2] - d[1];
    to[3] = d[1] - d[3];
  }
  static void kernel(const Vector* g, Vector* to) {  // G g
    const Vector even = (g[0] + g[2]) * (1 / 2.f), odd = g[1] * (1 / 2.f);
    to[0] = g[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = g[2];
  }
  static void output(const Vector* m, Vector* to) {  // A' m
    to[0] = m[0] + m[1] + m[2];
    to[1] = m[1] - m[2] - m[3];
  }
  static void output_gradient(const Vector* y, Vector* to) {  // A y
    to[0] = y[0];
    to[1] = y[0] + y[1];
    to[2] = y[0] - y[1];
    to[3] = -y[1];
  }
  static void kernel_gradient(const Vector* m, Vector* to) {  // G' m
    const Vector even = (m[1] + m[2]) * (1 / 2.f);
    to[0] = m[0] + even;
    to[1] = (m[1] - m[2]) * (1 / 2.f);
    to[2] = even + m[3];
  }
};

// The interpolation points 0, +-p, q with p = 5 / 4 and q = 1 / 2 round a quarter less than 0, +-1, 2.
template <>
struct Filtering<3> {
  static constexpr float p = 1.25f, q = 0.5f, pp = p * p, qq = q * q;
  // G divides by products of the points' distances.
  static constexpr float by_0 = 1 / (pp * q), by_p = 1 / (2 * pp * (p - q)),
                         by_minus_p = -1 / (2 * pp * (p + q)), by_q = 1 / (q * (qq - pp));

  static void image(const Vector* d, Vector* to) {
    const Vector between[] = {d[1] - q * d[0], d[2] - q * d[1], d[3] - q * d[2], d[4] - q * d[3]};
    to[0] = between[2] - pp * between[0];
    to[1] = between[2] + p * between[1];
    to[2] = between[2] - p * between[1];
    to[3] = d[3] - pp * d[1];
    to[4] = between[3] - pp * between[1];
  }
  static void kernel(const Vector* g, Vector* to) {
    const Vector even = g[0] + pp * g[2], odd = p * g[1];
    to[0] = by_0 * g[0];
    to[1] = by_p * (even + odd);
    to[2] = by_minus_p * (even - odd);
    to[3] = by_q * (g[0] + q * g[1] + qq * g[2]);
    to[4] = g[2];
  }
  static void output(const Vector* m, Vector* to) {
    const Vector even = m[1] + m[2];
    to[0] = m[0] + even + m[3];
    to[1] = p * (m[1] - m[2]) + q * m[3];
    to[2] = pp * even + qq * m[3] + m[4];
  }
  static void output_gradient(const Vector* y, Vector* to) {
    const Vector even = y[0] + pp * y[2], odd = p * y[1];
    to[0] = y[0];
    to[1] = even + odd;
    to[2] = even - odd;
    to[3] = y[0] + q * y[1] + qq * y[2];
    to[4] = y[2];
  }
  static void kernel_gradient(const Vector* m, Vector* to) {
    const Vector at_p = by_p * m[1], at_minus_p = by_minus_p * m[2], at_q = by_q * m[3];
    const Vector even = at_p + at_minus_p;
    to[0] = by_0 * m[0] + even + at_q;
    to[1] = p * (at_p - at_minus_p) + q * at_q;
    to[2] = pp * even + qq * at_q + m[4];
  }
};

// The interpolation points 0, +-a, +-b with a = 1 / sqrt(2) and b = sqrt(2) round four times less at
// worst than the usual 0, +-1, +-2.
template <>
struct Filtering<4> {
  static constexpr float a = 0.70710678f, b = 1.41421356f;

  static void image(const Vector* d, Vector* to) {
    const Vector even_a = d[4] - 2 * d[2], odd_a = a * (d[3] - 2 * d[1]);
    const Vector even_b = d[4] - 0.5f * d[2], odd_b = b * (d[3] - 0.5f * d[1]);
    to[0] = d[0] - 2.5f * d[2] + d[4];
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = d[1] - 2.5f * d[3] + d[5];
  }
  static void kernel(const Vector* g, Vector* to) {
    const Vector even_a = (g[0] + 0.5f * g[2]) * (-2 / 3.f), odd_a = g[1] * (-2 / 3.f * a);
    const Vector even_b = (g[0] + 2 * g[2]) * (1 / 6.f), odd_b = g[1] * (1 / 6.f * b);
    to[0] = g[0];
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = g[2];
  }
  static void output(const Vector* m, Vector* to) {
    const Vector even_a = m[1] + m[2], odd_a = a * (m[1] - m[2]);
    const Vector even_b = m[3] + m[4], odd_b = b * (m[3] - m[4]);
    to[0] = m[0] + even_a + even_b;
    to[1] = odd_a + odd_b;
    to[2] = 0.5f * even_a + 2 * even_b;
    to[3] = 0.5f * odd_a + 2 * odd_b + m[5];
  }
  static void output_gradient(const Vector* y, Vector* to) {
    const Vector even_a = y[0] + 0.5f * y[2], odd_a = a * (y[1] + 0.5f * y[3]);
    const Vector even_b = y[0] + 2 * y[2], odd_b = b * (y[1] + 2 * y[3]);
    to[0] = y[0];
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
    to[5] = y[3];
  }
  static void kernel_gradient(const Vector* m, Vector* to) {
    const Vector even_a = (m[1] + m[2]) * (-2 / 3.f), odd_a = (m[1] - m[2]) * (-2 / 3.f * a);
    const Vector even_b = (m[3] + m[4]) * (1 / 6.f), odd_b = (m[3] - m[4]) * (1 / 6.f * b);
    to[0] = m[0] + even_a + even_b;
    to[1] = odd_a + odd_b;
    to[2] = 0.5f * even_a + 2 * even_b + m[5];
  }
};

// Of a strip of tiles: what is made of images and of outputs. It passes from one loop to the next
// through the second level of cache, or the third: with shorter vectors the longer strip's fewer
// walks over a kernel are worth more. Measured on Zen 4 (16 lanes) and on Zen 3 (8).
constexpr int64_t kStripBytes = kLanes == 16 ? 1 << 19 : 1 << 20;
// The most that a kernel for tiles of 4 may take: every strip walks over all of it.
constexpr int64_t kKernelBytes = kLanes == 16 ? 3 << 19 : 5 << 19;

constexpr int64_t kPanel = kLong * kLanes;  // columns of a kernel that are kept together
static_assert(kLong == 2, "the last panel, if it is shorter, must be one vector wide");

template <int M>
constexpr int kElements = (M + 2) * (M + 2);  // of a tile in the transform domain

template <int M>
struct Tiles {
  explicit Tiles(const Shape& s)
      : columns((s.ow + M - 1) / M), count((s.oh + M - 1) / M * columns) {}
  int64_t columns, count;  // in an image
};

// How a matrix [rows, columns] of one element of the transform domain is kept: its type of number,
// how many numbers it takes, and how a vector gets to (row, column), all rows in turn.
struct Floats {
  using Number = float;
  static int64_t size(int64_t rows, int64_t columns) { return rows * columns; }
  static void put(const Vector& vector, int64_t row, int64_t column, int64_t columns, float* to) {
    put_vector(to, row * columns + column, vector);
  }
};

struct PairsOfColumns {  // their number is even
  using Number = Pair;
  static int64_t size(int64_t rows, int64_t columns) { return rows * columns / 2; }
  static void put(const Vector& vector, int64_t row, int64_t column, int64_t columns, Pair* to) {
    put_vector(reinterpret_cast<uint16_t*>(to), row * columns + column, rounded(vector));
  }
};

struct PairsOfRows {  // an even row's partner is 0 until it is put
  using Number = Pair;
  static int64_t size(int64_t rows, int64_t columns) { return (rows + 1) / 2 * columns; }
  static void put(const Vector& vector, int64_t row, int64_t column, int64_t columns, Pair* to) {
    const int64_t at = row / 2 * columns + column;
    const Pairs half = __builtin_convertvector(rounded(vector), Pairs);
    put_vector(to, at, row % 2 ? (vector_at<Pairs>(to, at) & 0xffff) | half << 16 : half);
  }
};

// What products of the transform domain are made of. In each, numbers that are summed over lie side
// by side: channels forward, tiles in a kernel's gradient. kCost is what one takes with larger tiles,
// by what it takes with tiles of 2; 0 leaves tiles out.
struct Float32 {
  using Images = Floats;
  using Kernel = Floats;
  using Tiles = Floats;
  static constexpr int64_t kBytes = 4;
  // Measured on Zen 3, and no slower on Zen 4 (16 lanes).
  static constexpr double kCostOf3 = 1.06, kCostOf4 = 1.18;
};

struct Bfloat16 {
  using Images = PairsOfColumns;
  using Kernel = PairsOfRows;
  using Tiles = PairsOfRows;
  static constexpr int64_t kBytes = 2;
  // Tiles of 3 would round nearly as tiles of 4 do, for less of a gain.
  static constexpr double kCostOf3 = 0, kCostOf4 = 1.5;  // on Zen 4
};

// Some tiles in the transform domain, [elements, tiles, channels]. One cache line more lies between
// two elements, because lines that are a multiple of 4096 bytes apart push each other out of the
// first level of cache.
template <typename Layout>
class Transformed {
 public:
  using Number = typename Layout::Number;

  Transformed(int64_t elements, int64_t tiles, int64_t channels)
      : channels_(channels), step_(Layout::size(tiles, channels) + 16), numbers_(elements * step_) {}

  Number* element(int64_t k) { return numbers_.data() + k * step_; }
  const Number* element(int64_t k) const { return numbers_.data() + k * step_; }

  // Keeps the square of a tile's elements, for the channels from c on.
  template <int N>
  void put(const Vector (&square)[N][N], int64_t tile, int64_t c) {
    UNROLLED
    for (int k = 0; k < N * N; ++k)
      Layout::put(square[k / N][k % N], tile, c, channels_, element(k));
  }

  // The same in panels: what a block reads of each of `rows` rows lies in turn. Rows a power of two
  // apart push each other out of the first level of cache.
  template <int N>
  void put_in_panels(const Vector (&square)[N][N], int64_t row, int64_t c, int64_t rows) {
    const int64_t first = c / kPanel * kPanel, width = std::min(kPanel, channels_ - first);
    UNROLLED
    for (int k = 0; k < N * N; ++k)
      Layout::put(square[k / N][k % N], row, c - first, width,
                  element(k) + Layout::size(rows, first));
  }

  template <int N>
  void get(int64_t tile, int64_t c, Vector (&square)[N][N]) {
    UNROLLED
    for (int k = 0; k < N * N; ++k)
      square[k / N][k % N] = vector_at(element(k), tile * channels_ + c);
  }

 private:
  int64_t channels_, step_;  // from element to element
  Aligned<Number> numbers_;
};

// Transformed images and outputs side by side, for `most` tiles or what fits in a strip.
template <int M, typename In, typename Out>
struct Strip {
  Strip(int64_t c, int64_t f, int64_t most, int64_t in_bytes, int64_t out_bytes)
      : tiles(std::min(most, std::max<int64_t>(
            kStripBytes / (kElements<M> * (in_bytes * c + out_bytes * f)) / kShort * kShort,
            kShort))),
        in(kElements<M>, tiles, c), out(kElements<M>, tiles, f) {}

  const int64_t tiles;
  Transformed<In> in;
  Transformed<Out> out;
};

template <int N>
using Square = Vector[N][N];

// Squares of vectors whose elements lie `step` numbers apart.
template <int N>
inline void load(Square<N>& to, const float* from, int64_t step) {
  UNROLLED
  for (int k = 0; k < N * N; ++k) to[k / N][k % N] = vector_at(from, k * step);
}

template <int N>
inline void store(const Square<N>& from, float* to, int64_t step) {
  UNROLLED
  for (int k = 0; k < N * N; ++k) put_vector(to, k * step, from[k / N][k % N]);
}

// Applies a transform of N vectors to M to the columns of a square, then to its rows.
template <int M, int N, typename Transform>
inline void both_ways(const Square<N>& from, Square<M>& to, const Transform& transform) {
  Vector between[M][N], column[N], result[M];
  UNROLLED
  for (int j = 0; j < N; ++j) {
    UNROLLED
    for (int i = 0; i < N; ++i) column[i] = from[i][j];
    transform(column, result);
    UNROLLED
    for (int i = 0; i < M; ++i) between[i][j] = result[i];
  }
  UNROLLED
  for (int i = 0; i < M; ++i) transform(between[i], to[i]);
}

// to[at ...] = B' d B for tiles [first, first + count) of an image. Beyond the edge the last row
// or column stands in: outputs that depend on it, but for rounding, are not kept.
template <int M, typename Layout>
void transform_image(const Shape& s, const float* image, int64_t first, int64_t count, int64_t at,
                     Transformed<Layout>& to) {
  const Tiles<M> tiles(s);
  for (int64_t tile = first; tile < first + count; ++tile, ++at) {
    int64_t rows[M + 2], columns[M + 2];
    for (int i = 0; i < M + 2; ++i) {
      rows[i] = std::min(tile / tiles.columns * M + i, s.h - 1) * s.w * s.c;
      columns[i] = std::min(tile % tiles.columns * M + i, s.w - 1) * s.c;
    }
    for (int64_t c = 0; c < s.c; c += kLanes) {
      Square<M + 2> pixels, result;
      UNROLLED
      for (int i = 0; i < M + 2; ++i) {
        UNROLLED
        for (int j = 0; j < M + 2; ++j) pixels[i][j] = vector_at(image, rows[i] + columns[j] + c);
      }
      both_ways<M + 2, M + 2>(pixels, result, Filtering<M>::image);
      to.put(result, at, c);
    }
  }
}

// Calls visit(i, j, offset) for the pixels of an output that a tile has.
template <int M, typename Visit>
inline void for_pixels(const Shape& s, int64_t tile, const Visit& visit) {
  const int64_t columns = Tiles<M>(s).columns;
  const int64_t y = tile / columns * M, x = tile % columns * M;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < M; ++j)
      if (y + i < s.oh && x + j < s.ow) visit(i, j, ((y + i) * s.ow + x + j) * s.f);
}

// out[...] = A' m A + bias for tiles [first, first + count) of an output and its first `features`,
// with m = sums[at ...].
template <int M>
void inverse_transform_output(const Shape& s, int64_t features, Transformed<Floats>& sums,
                              int64_t at, const float* bias, bool relu, int64_t first,
                              int64_t count, float* out) {
  const Vector least = least_output(relu);
  for (int64_t tile = first; tile < first + count; ++tile, ++at)
    for (int64_t f = 0; f < features; f += kLanes) {
      Square<M + 2> m;
      Square<M> result;
      sums.get(at, f, m);
      both_ways<M, M + 2>(m, result, Filtering<M>::output);
      for_pixels<M>(s, tile, [&](int i, int j, int64_t offset) {
        put_vector(out, offset + f, at_least(result[i][j] + vector_at(bias, f), least));
      });
    }
}

// to[at ...] = A dy A' for tiles [first, first + count) of an output's gradient dy.
template <int M, typename Layout>
void transform_output_gradient(const Shape& s, const float* grad, int64_t first, int64_t count,
                               int64_t at, Transformed<Layout>& to) {
  for (int64_t tile = first; tile < first + count; ++tile, ++at)
    for (int64_t f = 0; f < s.f; f += kLanes) {
      Square<M> pixels = {};
      Square<M + 2> result;
      for_pixels<M>(s, tile,
                    [&](int i, int j, int64_t from) { pixels[i][j] = vector_at(grad, from + f); });
      both_ways<M + 2, M>(pixels, result, Filtering<M>::output_gradient);
      to.put(result, at, f);
    }
}

// Returns [elements, c, f] = G g G' of a kernel [3, 3, c, f], in panels.
template <int M, typename Layout>
Transformed<Layout> transform_kernel(const Shape& s, const float* kernel) {
  Transformed<Layout> to(kElements<M>, s.c, s.f);
  for (int64_t x = 0, size = s.c * s.f; x < size; x += kLanes) {
    Square<3> filter;
    Square<M + 2> result;
    load<3>(filter, kernel + x, size);
    both_ways<M + 2, 3>(filter, result, Filtering<M>::kernel);
    to.put_in_panels(result, x / s.f, x % s.f, s.c);
  }
  return to;
}

// A kernel's gradient [3, 3, c, f] = G' m G of sums m [elements, c, f].
template <int M>
void inverse_transform_kernel_gradient(const Shape& s, const float* m, float* kernel) {
  for (int64_t x = 0, size = s.c * s.f; x < size; x += kLanes) {
    Square<M + 2> sums;
    Square<3> result;
    load<M + 2>(sums, m + x, size);
    both_ways<3, M + 2>(sums, result, Filtering<M>::kernel_gradient);
    store<3>(result, kernel + x, size);
  }
}

// A kernel in panels that was transformed beforehand.
struct KernelPanels {
  const float* numbers;
  int64_t step;  // from element to element
  const float* element(int64_t k) const { return numbers + k * step; }
};

// Some tiles' sums over channels: [tiles, depth] by [depth, f], where `depth` counts the numbers that
// hold a tile's channels.
template <typename Number>
struct WinogradTile {
  int64_t depth, f;
  const Number *tiles, *kernel;
  float* out;

  template <int A, int B>
  void run(int64_t a, int64_t b) const {
    Vector sums[A][B] = {};
    add_outer_products<A, B>(tiles + a * depth, depth, 1, kernel + b * depth, B * kLanes, depth,
                             sums);
    store<A, B>(sums, out + a * f + b, f);
  }
};

// Convolves tiles [begin, end) of a batch with the first `features` of a transformed kernel
// [elements, c, f] in panels: whole panels, or all there are. Each result goes to output(i) of its
// image; done(i) is called when an image's last tile is there, before output(i + 1) is written to: it
// is then whole, unless they began within it. A strip may hold tiles of several images.
template <int M, typename Type, typename Images, typename Kernel, typename Output, typename Done>
void convolve_winograd(const Shape& s, Images& images, int64_t begin, int64_t end,
                       const Kernel& kernel, int64_t features, const float* bias, bool relu,
                       const Output& output, const Done& done) {
  struct Run {
    int64_t image, first, count;
  };
  using Number = typename Type::Images::Number;
  const int64_t all = Tiles<M>(s).count;
  Strip<M, typename Type::Images, Floats> strip(s.c, features, end - begin, Type::kBytes, 4);
  std::vector<Run> runs;
  int64_t filled = 0;
  const auto finish = [&] {
    for (int k = 0; k < kElements<M>; ++k) {
      WinogradTile<Number> tile{Type::Images::size(1, s.c), features, strip.in.element(k),
                                kernel.element(k), strip.out.element(k)};
      cover<kShort>(0, filled, features, tile);
    }
    int64_t at = 0;
    for (const Run& run : runs) {
      inverse_transform_output<M>(s, features, strip.out, at, bias, relu, run.first, run.count,
                                  output(run.image));
      at += run.count;
      if (run.first + run.count == all) done(run.image);
    }
    runs.clear();
    filled = 0;
  };
  const float* image = nullptr;
  for (int64_t tile = begin, count; tile < end; tile += count) {
    const int64_t i = tile / all, first = tile % all;
    if (tile == begin || first == 0) image = images[i];
    count = std::min({all - first, end - tile, strip.tiles - filled});
    transform_image<M>(s, image, first, count, filled, strip.in);
    runs.push_back({i, first, count});
    filled += count;
    if (filled == strip.tiles) finish();
  }
  finish();
}

// A block of a transformed kernel's gradient: [c, depth] by [depth, f], where `depth` counts the
// numbers that hold a channel's tiles.
template <typename Number>
struct WinogradGradientTile {
  const Shape& s;
  const Number *image, *grad;
  float* sum;
  int64_t depth;

  template <int A, int B>
  void run(int64_t a, int64_t b) const {
    Vector sums[A][B];
    load<A, B>(sums, sum + a * s.f + b, s.f);
    add_outer_products<A, B>(image + a, 1, s.c, grad + b, s.f, depth, sums);
    store<A, B>(sums, sum + a * s.f + b, s.f);
  }
};

// Sums the gradients of a transformed kernel over images. A strip may hold tiles of several.
template <int M, typename Type>
class WinogradGradients {
 public:
  static int64_t size(const Shape& s) { return kElements<M> * s.c * s.f; }

  WinogradGradients(const Shape& s, float* sums)
      : s_(s), sums_(sums), strip_(s.c, s.f, s.n * Tiles<M>(s).count, Type::kBytes, Type::kBytes) {}

  template <typename Images>
  void add(Images& images, int64_t i, const float* grad) {
    const int64_t all = Tiles<M>(s_).count;
    const float* image = images[i];
    for (int64_t first = 0, count; first < all; first += count) {
      count = std::min(all - first, strip_.tiles - filled_);
      transform_image<M>(s_, image, first, count, filled_, strip_.in);
      transform_output_gradient<M>(s_, grad, first, count, filled_, strip_.out);
      filled_ += count;
      if (filled_ == strip_.tiles) finish();
    }
  }

  // To be called after the last image.
  void finish() {
    using Number = typename Type::Tiles::Number;
    for (int k = 0; k < kElements<M>; ++k) {
      WinogradGradientTile<Number> tile{s_, strip_.in.element(k), strip_.out.element(k),
                                        sums_ + k * s_.c * s_.f, Type::Tiles::size(filled_, 1)};
      cover<kShort>(0, s_.c, s_.f, tile);
    }
    filled_ = 0;
  }

 private:
  const Shape& s_;
  float* sums_;
  Strip<M, typename Type::Tiles, typename Type::Tiles> strip_;
  int64_t filled_ = 0;
};

// Calls work with the side of a tile, if there is one, as a type that is this number.
template <typename Work>
bool with_tile(int side, const Work& work) {
  if (side == 2) work(std::integral_constant<int, 2>());
  if (side == 3) work(std::integral_constant<int, 3>());
  if (side == 4) work(std::integral_constant<int, 4>());
  return side > 0;
}

// Returns the side of the tiles that are fastest, 0 if it is the definition: tiles reach over an
// edge that they do not divide, and every strip walks over all of the transformed kernel.
template <typename Type>
int best_tile(const Shape& s) {
  if (s.kh != 3 || s.kw != 3 || s.stride_h != 1 || s.stride_w != 1 || s.c % 16) return 0;
  int best = 0;
  double least = 9 * s.oh * s.ow;
  const auto consider = [&](int side, double cost) {
    if (cost < least) best = side, least = cost;
  };
  consider(2, kElements<2> * Tiles<2>(s).count);
  if (Type::kCostOf3) consider(3, Type::kCostOf3 * kElements<3> * Tiles<3>(s).count);
  if (Type::kBytes * kElements<4> * s.c * s.f <= kKernelBytes)
    consider(4, Type::kCostOf4 * kElements<4> * Tiles<4>(s).count);
  return best;
}

}  // namespace
