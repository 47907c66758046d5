// Convolution for XLA's CPU backend, called through its foreign function interface.
//
// Both directions sum outer products: a short vector of numbers from the images times a long one of
// output channels, kept in registers until it is whole. Arrays are float32 and row-major: images
// [n, h, w, c], output [n, oh, ow, f], kernel [kh, kw, c, f], f a multiple of 16. In a row of an
// image the kw * c numbers under a kernel's row lie side by side, so (kw, c) is one axis here.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;  // numbers in a vector
constexpr int kShort = 8;   // of the short vector: 8 x 2 sums and what feeds them fit in 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kShort = 4;
#else
constexpr int kLanes = 4;
constexpr int kShort = 4;
#endif
constexpr int kLong = 2;  // vectors in the long one
constexpr int64_t kChunkBytes = 1 << 15;  // of images and gradient walked over again and again: L1

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4)));

// h and w count the padding too; rows outside [top, bottom) are padding.
struct Shape {
  int64_t n, h, w, c, oh, ow, f, kh, kw, stride_h, stride_w, top, bottom, left;
  int64_t real_w;
};

// sums[a][b] += short[a] * long[b], `count` times, each time a step further.
template <int A, int B>
inline void add_outer_products(const float* shorts, int64_t spread, int64_t short_step,
                               const float* longs, int64_t long_step, int64_t count,
                               Vector (&sums)[A][B]) {
  for (int64_t i = 0; i < count; ++i) {
    Vector long_[B];
    for (int b = 0; b < B; ++b) long_[b] = *reinterpret_cast<const Vector*>(longs + b * kLanes);
    for (int a = 0; a < A; ++a)
      for (int b = 0; b < B; ++b) sums[a][b] += shorts[a * spread] * long_[b];
    shorts += short_step;
    longs += long_step;
  }
}

template <int A, int B>
inline void load(Vector (&sums)[A][B], const float* from, int64_t row) {
  for (int a = 0; a < A; ++a)
    for (int b = 0; b < B; ++b)
      sums[a][b] = *reinterpret_cast<const Vector*>(from + a * row + b * kLanes);
}

template <int A, int B>
inline void store(const Vector (&sums)[A][B], float* to, int64_t row) {
  for (int a = 0; a < A; ++a)
    for (int b = 0; b < B; ++b) *reinterpret_cast<Vector*>(to + a * row + b * kLanes) = sums[a][b];
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

void add_kernel_gradient(const Shape& s, const float* image, const float* grad, float* kernel) {
  const int64_t row_bytes = 4 * (s.w * s.c * s.stride_h + s.ow * s.f);
  const int64_t rows = std::clamp<int64_t>(kChunkBytes / row_bytes, 1, s.oh);
  for (int64_t y = 0; y < s.oh; y += rows)
    for (int64_t i = 0; i < s.kh; ++i) {
      GradientTile tile{s, image + (y * s.stride_h + i) * s.w * s.c, grad + y * s.ow * s.f,
                        kernel + i * s.kw * s.c * s.f, std::min(rows, s.oh - y)};
      cover<kShort>(0, s.kw * s.c, s.f, tile);
    }
}

// A few positions of an output row: the short vector goes over positions.
struct ForwardTile {
  const Shape& s;
  const float *image, *kernel;  // the image from the output row's first row on
  float* out_row;
  int64_t first, last;  // rows of the kernel that do not lie on padding

  template <int A, int B>
  void run(int64_t a, int64_t b) const {
    Vector sums[A][B] = {};
    const int64_t step = s.stride_w * s.c;
    for (int64_t i = first; i < last; ++i)
      add_outer_products<A, B>(image + i * s.w * s.c + a * step, step, 1,
                               kernel + i * s.kw * s.c * s.f + b, s.f, s.kw * s.c, sums);
    store<A, B>(sums, out_row + a * s.f + b, s.f);
  }
};

void convolve(const Shape& s, const float* image, const float* kernel, float* out) {
  for (int64_t y = 0; y < s.oh; ++y) {
    const int64_t row = y * s.stride_h;
    ForwardTile tile{s, image + row * s.w * s.c, kernel, out + y * s.ow * s.f,
                     std::max<int64_t>(0, s.top - row), std::min(s.kh, s.bottom - row)};
    cover<kShort>(0, s.ow, s.f, tile);
  }
}

// Runs work(0) ... work(tasks - 1) on this thread and the pool's. This thread takes tasks too, so
// that it ends even if every thread of the pool waits in here.
template <typename Work>
void run_tasks(ffi::ThreadPool& pool, int64_t tasks, const Work& work) {
  struct Progress {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable changed;
  };
  auto progress = std::make_shared<Progress>();
  auto take = [progress, tasks, &work] {
    for (int64_t task; (task = progress->next++) < tasks;) {
      work(task);
      std::lock_guard<std::mutex> lock(progress->mutex);
      ++progress->done;
      progress->changed.notify_all();
    }
  };
  for (int64_t i = 1; i < tasks; ++i) pool.Schedule([take] { take(); });
  take();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->changed.wait(lock, [&] { return progress->done == tasks; });
}

using Array = ffi::Buffer<ffi::F32, 4>;
using Result = ffi::Result<Array>;
using Ints = ffi::Span<const int64_t>;

// padding: top, bottom, left, right.
Shape shape_of(Ints in, Ints out, Ints kernel, Ints strides, Ints padding) {
  return {in[0],
          in[1] + padding[0] + padding[1],
          in[2] + padding[2] + padding[3],
          in[3],
          out[1],
          out[2],
          kernel[3],
          kernel[0],
          kernel[1],
          strides[0],
          strides[1],
          padding[0],
          padding[0] + in[1],
          padding[2],
          in[2]};
}

ffi::Error check(const Shape& s) {
  if (s.f % 16 || (s.oh - 1) * s.stride_h + s.kh > s.h || (s.ow - 1) * s.stride_w + s.kw > s.w)
    return ffi::Error::InvalidArgument("fer_jax native convolution: shapes do not fit");
  return ffi::Error::Success();
}

// Hands out images of a batch with their padding; each task has its own.
class PaddedImages {
 public:
  PaddedImages(const Shape& s, const float* images) : s_(s), images_(images) {
    if (s.bottom - s.top != s.h || s.real_w != s.w) padded_.resize(s.h * s.w * s.c);
  }

  const float* operator[](int64_t i) {
    const int64_t row = s_.real_w * s_.c;
    const float* image = images_ + i * (s_.bottom - s_.top) * row;
    if (padded_.empty()) return image;
    for (int64_t y = s_.top; y < s_.bottom; ++y, image += row)
      std::memcpy(&padded_[(y * s_.w + s_.left) * s_.c], image, row * sizeof(float));
    return padded_.data();
  }

 private:
  const Shape& s_;
  const float* images_;
  std::vector<float> padded_;
};

// Calls work(image's number, padded image) for the images of one of `tasks` even shares.
template <typename Work>
void for_images(const Shape& s, const float* images, int64_t task, int64_t tasks,
                const Work& work) {
  PaddedImages padded(s, images);
  for (int64_t i = s.n * task / tasks; i < s.n * (task + 1) / tasks; ++i) work(i, padded[i]);
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Array images, Array grad, Ints strides,
                           Ints padding, int64_t tasks, Result kernel) {
  const Shape s = shape_of(images.dimensions(), grad.dimensions(), kernel->dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  const int64_t size = s.kh * s.kw * s.c * s.f;
  // Each task sums on its own; the sums are then added in order, so that a repeat gives equal bits.
  std::vector<float> others((tasks - 1) * size);
  float* total = kernel->typed_data();
  run_tasks(pool, tasks, [&](int64_t task) {
    float* sum = task ? others.data() + (task - 1) * size : total;
    std::memset(sum, 0, size * sizeof(float));
    for_images(s, images.typed_data(), task, tasks, [&](int64_t i, const float* image) {
      add_kernel_gradient(s, image, grad.typed_data() + i * s.oh * s.ow * s.f, sum);
    });
  });
  for (int64_t task = 1; task < tasks; ++task)
    for (int64_t i = 0; i < size; ++i) total[i] += others[(task - 1) * size + i];
  return ffi::Error::Success();
}

ffi::Error convolution(ffi::ThreadPool pool, Array images, Array kernel, Ints strides,
                       Ints padding, int64_t tasks, Result out) {
  const Shape s = shape_of(images.dimensions(), out->dimensions(), kernel.dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  run_tasks(pool, tasks, [&](int64_t task) {
    for_images(s, images.typed_data(), task, tasks, [&](int64_t i, const float* image) {
      convolve(s, image, kernel.typed_data(), out->typed_data() + i * s.oh * s.ow * s.f);
    });
  });
  return ffi::Error::Success();
}

}  // namespace

#define BINDING                         \
  ffi::Ffi::Bind()                      \
      .Ctx<ffi::ThreadPool>()           \
      .Arg<Array>()                     \
      .Arg<Array>()                     \
      .Attr<Ints>("strides")            \
      .Attr<Ints>("padding")            \
      .Attr<int64_t>("tasks")           \
      .Ret<Array>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_kernel_gradient, kernel_gradient, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_convolution, convolution, BINDING);
