// Max-pooling and its gradient.

#pragma once

#include "vectors.h"

namespace {

// Max-pooling without padding of [h, w, f] to [oh, ow, f].
struct Pool {
  int64_t h, w, f, oh, ow, window_h, window_w, stride_h, stride_w;

  // Calls visit(offset of the output's first channel, offset of the window's) for every window.
  template <typename Visit>
  void for_windows(const Visit& visit) const {
    for (int64_t y = 0; y < oh; ++y)
      for (int64_t x = 0; x < ow; ++x)
        visit((y * ow + x) * f, (y * stride_h * w + x * stride_w) * f);
  }
};

// `argmax`: which element of its window each maximum is, counted row by row; -1 if it is not
// positive, because then the ReLU before the pool lets no gradient pass.
template <bool kWithArgmax>
void pool(const Pool& p, const float* image, float* out, int8_t* argmax) {
  p.for_windows([&](int64_t to, int64_t from) {
    for (int64_t c = 0; c < p.f; c += kLanes) {
      Vector best = vector_at(image, from + c);
      Indices index = {};
      for (int i = 0, at = 0; i < p.window_h; ++i)
        for (int j = 0; j < p.window_w; ++j, ++at) {
          const int64_t offset = from + (i * p.w + j) * p.f + c;
          const Vector here = vector_at(image, offset);
          const Indices is_new = (here > best) | (here != here);  // not a number stays so
          if constexpr (kWithArgmax) index = is_new ? Indices{} + at : index;
          best = is_new ? here : best;
        }
      put_vector(out, to + c, best);
      if constexpr (kWithArgmax) {
        index = best > 0 ? index : Indices{} - 1;
        put_bytes(argmax, to + c, index);
      }
    }
  });
}

// Adds each output's gradient to its window's element `argmax`, to none if there is no such element;
// image rows are `pitch` numbers apart.
void unpool(const Pool& p, const float* grad, const int8_t* argmax, float* image, int64_t pitch) {
  p.for_windows([&](int64_t from, int64_t to) {
    float* window = image + to / (p.w * p.f) * pitch + to % (p.w * p.f);
    for (int64_t c = 0; c < p.f; c += kLanes) {
      const Vector given = vector_at(grad, from + c);
      const Indices index = __builtin_convertvector(vector_at<Bytes>(argmax, from + c), Indices);
      for (int i = 0, at = 0; i < p.window_h; ++i)
        for (int j = 0; j < p.window_w; ++j, ++at) {
          const int64_t offset = i * pitch + j * p.f + c;
          const Vector added = index == at ? given : Vector{};
          put_vector(window, offset, vector_at(window, offset) + added);
        }
    }
  });
}

}  // namespace
