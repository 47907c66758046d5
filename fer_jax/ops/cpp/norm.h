// What batch normalisation sums up over a batch.

#pragma once

#include "vectors.h"

namespace {

// Sums term(at) over the vectors of channels at each of `positions` pixels, in four sums: the
// additions of one would wait for each other.
template <typename Term>
inline Vector sum_over(int64_t positions, int64_t channels, const Term& term) {
  constexpr int kSums = 4;
  Vector sums[kSums] = {};
  int64_t p = 0;
  for (; p + kSums <= positions; p += kSums)
    for (int k = 0; k < kSums; ++k) sums[k] += term((p + k) * channels);
  for (; p < positions; ++p) sums[0] += term(p * channels);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Means, and sums of the squared distances from them, of some channels over `count` pixels.
struct Moments {
  float count;
  Vector mean, squares;

  // Of one image; it is read twice, the second time from the cache.
  static Moments of(const float* image, int64_t positions, int64_t channels) {
    const float count = static_cast<float>(positions);
    const Vector mean =
        sum_over(positions, channels, [&](int64_t at) { return vector_at(image, at); }) / count;
    const Vector squares = sum_over(positions, channels, [&](int64_t at) {
      const Vector distance = vector_at(image, at) - mean;
      return distance * distance;
    });
    return {count, mean, squares};
  }

  // Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
  // Variances" (1979), equations 2.1.
  void add(const Moments& other) {
    const float sum = count + other.count;
    const Vector delta = other.mean - mean;
    mean += delta * (other.count / sum);
    squares += other.squares + delta * delta * (count * other.count / sum);
    count = sum;
  }
};

// How channels are normalised: (x - mean) * inverse, then * scale + bias, then perhaps ReLU.
struct Normalisation {
  const float *mean, *inverse, *scale, *bias;
  bool relu;
};

// For the channels from c on, the sums over an image of the gradient behind ReLU, and of its products
// with what was normalised.
struct GradientSums {
  Vector grads, products;

  static GradientSums of(const Normalisation& n, const float* image, const float* grad, int64_t c,
                         int64_t positions, int64_t channels) {
    const Vector mean = vector_at(n.mean, c), inverse = vector_at(n.inverse, c);
    const Vector scale = vector_at(n.scale, c), bias = vector_at(n.bias, c);
    GradientSums sums = {};
    for (int64_t p = 0; p < positions; ++p) {
      const int64_t at = p * channels + c;
      const Vector normal = (vector_at(image, at) - mean) * inverse;
      Vector g = vector_at(grad, at);
      if (n.relu) g = normal * scale + bias > 0 ? g : Vector{};
      sums.grads += g;
      sums.products += g * normal;
    }
    return sums;
  }
};

}  // namespace
