// Batch normalisation: what it sums up over a batch, and what becomes of images in front of a pool.
//
// Numbers are walked over in the order in which they lie in memory, a few pixels at a time, each vector
// of channels in turn. A channel after the other would be read in strides, which a processor does not
// fetch ahead.

#pragma once

#include <type_traits>

#include "pool.h"
#include "vectors.h"

namespace {

// Calls visit(count, offset, c) for the vectors of channels, from c on, of `count` pixels in a row, of
// which the first one's is at the offset. The count is a type that is this number.
template <typename Visit>
inline void for_pixels(int64_t positions, int64_t channels, const Visit& visit) {
  constexpr int kPixels = 4;
  int64_t p = 0;
  const auto take = [&](auto count) {
    for (int64_t c = 0; c < channels; c += kLanes) visit(count, p * channels + c, c);
    p += count;
  };
  while (p + kPixels <= positions) take(std::integral_constant<int, kPixels>());
  while (p < positions) take(std::integral_constant<int, 1>());
}

inline void add_to(float* sums, int64_t c, const Vector& more) {
  put_vector(sums, c, vector_at(sums, c) + more);
}

// The mean of each channel over some pixels, and the sum of the squared distances from it.
class Moments {
 public:
  explicit Moments(int64_t channels)  // of no pixels
      : channels_(channels), mean_(AlignedBuffer::zeros(channels)),
        squares_(AlignedBuffer::zeros(channels)) {}

  const float* mean() const { return mean_.data(); }
  float variance(int64_t c) const { return squares_.data()[c] / count_; }

  // Takes as many pixels at a time as stay in the first level of cache, since they are read twice; `few`
  // is room for them.
  void add(const float* pixels, int64_t positions, Moments& few) {
    const int64_t chunk = std::max<int64_t>(1, kChunkBytes / 4 / channels_);
    for (int64_t p = 0; p < positions; p += chunk) {
      few.set(pixels + p * channels_, std::min(chunk, positions - p));
      add(few);
    }
  }

  // Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
  // Variances" (1979), equations 2.1.
  void add(const Moments& other) {
    const float sum = count_ + other.count_;
    const float share = other.count_ / sum, between = count_ * other.count_ / sum;
    for (int64_t c = 0; c < channels_; c += kLanes) {
      const Vector delta = vector_at(other.mean(), c) - vector_at(mean(), c);
      add_to(mean_.data(), c, delta * share);
      add_to(squares_.data(), c, vector_at(other.squares_.data(), c) + delta * delta * between);
    }
    count_ = sum;
  }

 private:
  static constexpr int64_t kChunkBytes = 1 << 14;

  void set(const float* pixels, int64_t positions) {
    float *mean = mean_.data(), *squares = squares_.data();
    std::fill_n(mean, channels_, 0);
    std::fill_n(squares, channels_, 0);
    for_pixels(positions, channels_, [=](auto count, int64_t at, int64_t c) {
      Vector sum = {};
      for (int k = 0; k < count; ++k) sum += vector_at(pixels, at + k * channels_);
      add_to(mean, c, sum);
    });
    count_ = static_cast<float>(positions);
    for (int64_t c = 0; c < channels_; c += kLanes) put_vector(mean, c, vector_at(mean, c) / count_);
    for_pixels(positions, channels_, [=](auto count, int64_t at, int64_t c) {
      const Vector from = vector_at(mean, c);
      Vector sum = {};
      for (int k = 0; k < count; ++k) {
        const Vector distance = vector_at(pixels, at + k * channels_) - from;
        sum += distance * distance;
      }
      add_to(squares, c, sum);
    });
  }

  int64_t channels_;
  float count_ = 0;
  AlignedBuffer mean_, squares_;
};

// How channels are normalised: (x - mean) * inverse, then * scale + bias.
struct Normalisation {
  const float *mean, *inverse, *scale, *bias;
};

// The same for a vector of them, from c on.
struct NormalisationAt {
  Vector mean, inverse, scale, bias;

  NormalisationAt(const Normalisation& n, int64_t c)
      : mean(vector_at(n.mean, c)), inverse(vector_at(n.inverse, c)), scale(vector_at(n.scale, c)),
        bias(vector_at(n.bias, c)) {}

  Vector normal(const Vector& numbers) const { return (numbers - mean) * inverse; }
  Vector scaled(const Vector& normal) const { return normal * scale + bias; }
};

// Adds to sums, [2, channels], the gradients behind the ReLU, if there is one, and their products with
// what was normalised.
template <bool kRelu>
void add_gradients(const Normalisation& how, const float* pixels, const float* grads,
                   int64_t positions, int64_t channels, float* sums) {
  for_pixels(positions, channels, [=](auto count, int64_t at, int64_t c) {
    const NormalisationAt n(how, c);
    Vector all = {}, products = {};
    for (int k = 0; k < count; ++k) {
      const Vector normal = n.normal(vector_at(pixels, at + k * channels));
      Vector grad = vector_at(grads, at + k * channels);
      if constexpr (kRelu) grad = n.scaled(normal) > 0 ? grad : Vector{};
      all += grad;
      products += grad * normal;
    }
    add_to(sums, c, all);
    add_to(sums, channels + c, products);
  });
}

// Below, an image is normalised, and a ReLU and a max-pool follow whose windows of 2x2 lie side by side.

constexpr int kWindow = 4;  // pixels

// Calls visit(offset of the output, offset of the window, c) for the vectors of channels, from c on, of
// every window.
template <typename Visit>
inline void for_windows_and_channels(const Pool& p, const Visit& visit) {
  p.for_windows([&](int64_t to, int64_t from) {
    for (int64_t c = 0; c < p.f; c += kLanes) visit(to + c, from + c, c);
  });
}

// Where the i-th pixel is of a window that begins there.
inline int64_t in_window(const Pool& p, int64_t from, int i) {
  return from + (i / 2 * p.w + i % 2) * p.f;
}

// `argmax` as `pool` has it.
void pool_normalised(const Normalisation& how, const Pool& p, const float* image, float* out,
                     int8_t* argmax) {
  for_windows_and_channels(p, [=](int64_t to, int64_t from, int64_t c) {
    const NormalisationAt n(how, c);
    Vector best = {};
    Indices index = Indices{} - 1;
    UNROLLED
    for (int i = 0; i < kWindow; ++i) {
      const Vector here = n.scaled(n.normal(vector_at(image, in_window(p, from, i))));
      const Indices is_new = (here > best) | (here != here);  // not a number stays so
      index = is_new ? Indices{} + i : index;
      best = is_new ? here : best;
    }
    put_vector(out, to, best);
    put_bytes(argmax, to, best == best ? index : Indices{} - 1);
  });
}

// Adds what `add_gradients` does.
void add_pooled_gradients(const Normalisation& how, const Pool& p, const float* image,
                          const float* grads, const int8_t* argmax, float* sums) {
  for_windows_and_channels(p, [=](int64_t from, int64_t to, int64_t c) {
    const Indices index = __builtin_convertvector(vector_at<Bytes>(argmax, from), Indices);
    Vector largest = {}, grad = {};
    UNROLLED
    for (int i = 0; i < kWindow; ++i) {
      largest = index == i ? vector_at(image, in_window(p, to, i)) : largest;
      grad = index == i ? vector_at(grads, from) : grad;
    }
    add_to(sums, c, grad);
    add_to(sums, p.f + c, grad * NormalisationAt(how, c).normal(largest));
  });
}

// The gradient by the image. `means` are [2, channels]: such sums, by the number of pixels of the batch.
void pooled_normalisation_gradient(const Normalisation& how, const Pool& p, const float* means,
                                   const float* image, const float* grads, const int8_t* argmax,
                                   float* out) {
  for_windows_and_channels(p, [=](int64_t from, int64_t to, int64_t c) {
    const NormalisationAt n(how, c);
    const Vector mean_grad = vector_at(means, c), mean_product = vector_at(means, p.f + c);
    const Vector given = vector_at(grads, from), factor = n.inverse * n.scale;
    const Indices index = __builtin_convertvector(vector_at<Bytes>(argmax, from), Indices);
    UNROLLED
    for (int i = 0; i < kWindow; ++i) {
      const int64_t at = in_window(p, to, i);
      const Vector grad = index == i ? given : Vector{}, normal = n.normal(vector_at(image, at));
      put_vector(out, at, (grad - mean_grad - normal * mean_product) * factor);
    }
  });
}

}  // namespace
