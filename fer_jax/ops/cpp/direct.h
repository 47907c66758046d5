// Convolution of any shape: every product that its definition names.
//
// Sums outer products in both directions: a short vector of numbers from the images times a long
// one of output channels, kept in registers until it is whole. In a row of an image the kw * c
// numbers under a kernel's row lie side by side, so (kw, c) is one axis here.

#pragma once

#include "vectors.h"

namespace {

constexpr int64_t kChunkBytes = 1 << 15;  // of images and gradient walked over again and again: L1

// One block of a kernel's row, over a few rows of an image.
struct GradientTile {
  const Shape& s;
  const float *image, *grad;  // where the rows begin
  float* kernel_row;
  int64_t rows;

  template <int A, int B>
  void run(int64_t a, int64_t b) const {
    Vector sums[A][B];
    load<A, B>(sums, kernel_row + a * s.f + b, s.f);
    for (int64_t y = 0; y < rows; ++y)
      add_outer_products<A, B>(image + y * s.stride_h * s.w * s.c + a, 1, s.stride_w * s.c,
                               grad + y * s.ow * s.f + b, s.f, s.ow, sums);
    store<A, B>(sums, kernel_row + a * s.f + b, s.f);
  }
};

// Sums the gradients of a kernel over images.
class KernelGradients {
 public:
  static int64_t size(const Shape& s) { return s.kh * s.kw * s.c * s.f; }

  KernelGradients(const Shape& s, float* sums) : s_(s), sums_(sums) {}

  template <typename Images>
  void add(Images& images, int64_t i, const float* grad) {
    const Shape& s = s_;
    const float* image = images[i];
    const int64_t row_bytes = 4 * (s.w * s.c * s.stride_h + s.ow * s.f);
    const int64_t rows = std::clamp<int64_t>(kChunkBytes / row_bytes, 1, s.oh);
    for (int64_t y = 0; y < s.oh; y += rows)
      for (int64_t j = 0; j < s.kh; ++j) {
        GradientTile tile{s, image + (y * s.stride_h + j) * s.w * s.c, grad + y * s.ow * s.f,
                          sums_ + j * s.kw * s.c * s.f, std::min(rows, s.oh - y)};
        cover<kShort>(0, s.kw * s.c, s.f, tile);
      }
  }

  void finish() {}

 private:
  const Shape& s_;
  float* sums_;
};

// A few positions of an output row: the short vector goes over positions.
struct ForwardTile {
  const Shape& s;
  const float *image, *kernel, *bias;  // the image from the output row's first row on
  bool relu;
  float* out_row;
  int64_t first, last;  // rows of the kernel that do not lie on padding

  template <int A, int B>
  void run(int64_t a, int64_t b) const {
    Vector sums[A][B];
    load<A, B>(sums, bias + b, 0);
    const int64_t step = s.stride_w * s.c;
    for (int64_t i = first; i < last; ++i)
      add_outer_products<A, B>(image + i * s.w * s.c + a * step, step, 1,
                               kernel + i * s.kw * s.c * s.f + b, s.f, s.kw * s.c, sums);
    if (relu)
      for (auto& row : sums)
        for (Vector& sum : row) sum = sum < 0 ? Vector{} : sum;  // not a number stays so
    store<A, B>(sums, out_row + a * s.f + b, s.f);
  }
};

void convolve(const Shape& s, const float* image, const float* kernel, const float* bias, bool relu,
              float* out) {
  for (int64_t y = 0; y < s.oh; ++y) {
    const int64_t row = y * s.stride_h;
    ForwardTile tile{s, image + row * s.w * s.c, kernel, bias, relu, out + y * s.ow * s.f,
                     std::max<int64_t>(0, s.top - row), std::min(s.kh, s.bottom - row)};
    cover<kShort>(0, s.ow, s.f, tile);
  }
}

}  // namespace
