// Depthwise convolution.

#pragma once

#include "vectors.h"

namespace {

// Depthwise 3x3 convolution with strides of 1 and SAME padding. A row of an image is one axis of
// w * c numbers, on which a pixel's neighbours are c numbers away. `kernel` and `sums` are
// [kTaps, w * c]: each channel's own filter, repeated for every pixel of a row.
constexpr int kTaps = 9;

// Calls visit(at, first) for vectors that cover [0, row). The last may overlap the one before it;
// its lanes before `first` are then those done already.
template <typename Visit>
void for_vectors(int64_t row, const Visit& visit) {
  for (int64_t x = 0; x < row; x += kLanes) {
    const int64_t at = std::min(x, row - kLanes);
    visit(at, x - at);
  }
}

// Down a column of vectors, so that the filters, or the sums, stay in registers.
template <typename Visit>
inline void for_taps(const Shape& s, const float* image, const Visit& visit) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j)
      visit(3 * i + j, vector_at(image, (i * s.w + j) * s.c));
}

void convolve_depthwise(const Shape& s, const float* image, const float* kernel, float* out) {
  const int64_t row = s.ow * s.c;
  for_vectors(row, [&](int64_t at, int64_t) {
    Vector filter[kTaps][1];
    load<kTaps, 1>(filter, kernel + at, row);
    for (int64_t y = 0; y < s.oh; ++y) {
      Vector sum = {};
      for_taps(s, image + y * s.w * s.c + at,
               [&](int tap, Vector pixel) { sum += pixel * filter[tap][0]; });
      put_vector(out, y * row + at, sum);
    }
  });
}

void add_depthwise_gradient(const Shape& s, const float* image, const float* grad, float* sums) {
  const int64_t row = s.ow * s.c;
  for_vectors(row, [&](int64_t at, int64_t first) {
    Vector sum[kTaps] = {};
    for (int64_t y = 0; y < s.oh; ++y) {
      const Vector given = vector_at(grad, y * row + at);
      for_taps(s, image + y * s.w * s.c + at,
               [&](int tap, Vector pixel) { sum[tap] += pixel * given; });
    }
    for (int tap = 0; tap < kTaps; ++tap)
      for (int64_t lane = first; lane < kLanes; ++lane)
        sums[tap * row + at + lane] += sum[tap][lane];
  });
}

}  // namespace
