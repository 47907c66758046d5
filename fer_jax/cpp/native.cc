// Convolution and max-pooling for XLA's CPU backend, called through its foreign function interface.
//
// Convolution sums outer products in both directions: a short vector of numbers from the images
// times a long one of output channels, kept in registers until it is whole. Arrays are float32 and
// row-major: images [n, h, w, c], output [n, oh, ow, f], kernel [kh, kw, c, f], f a multiple of 16.
// In a row of an image the kw * c numbers under a kernel's row lie side by side, so (kw, c) is one
// axis here.

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
typedef int32_t Indices __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4)));
typedef int8_t Bytes __attribute__((vector_size(kLanes), aligned(1)));

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
        for (Vector& sum : row) sum = sum > 0 ? sum : Vector{};
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

// Also tells the place in its window of each maximum, row by row; -1 if it is not positive, because
// then the ReLU before the pool lets no gradient pass.
template <bool kWithPlaces>
void pool(const Pool& p, const float* image, float* out, int8_t* places) {
  p.for_windows([&](int64_t to, int64_t from) {
    for (int64_t c = 0; c < p.f; c += kLanes) {
      Vector best = *reinterpret_cast<const Vector*>(image + from + c);
      Indices place = {};
      for (int i = 0, at = 0; i < p.window_h; ++i)
        for (int j = 0; j < p.window_w; ++j, ++at) {
          const int64_t offset = from + (i * p.w + j) * p.f + c;
          const Vector here = *reinterpret_cast<const Vector*>(image + offset);
          if constexpr (kWithPlaces) place = here > best ? Indices{} + at : place;
          best = here > best ? here : best;
        }
      *reinterpret_cast<Vector*>(out + to + c) = best;
      if constexpr (kWithPlaces) {
        place = best > 0 ? place : Indices{} - 1;
        *reinterpret_cast<Bytes*>(places + to + c) = __builtin_convertvector(place, Bytes);
      }
    }
  });
}

// Adds each output's gradient where its maximum stood; image rows are `pitch` numbers apart.
void unpool(const Pool& p, const float* grad, const int8_t* places, float* image, int64_t pitch) {
  p.for_windows([&](int64_t from, int64_t to) {
    float* window = image + to / (p.w * p.f) * pitch + to % (p.w * p.f);
    for (int64_t c = 0; c < p.f; c += kLanes) {
      const Vector given = *reinterpret_cast<const Vector*>(grad + from + c);
      const Indices place =
          __builtin_convertvector(*reinterpret_cast<const Bytes*>(places + from + c), Indices);
      for (int i = 0, at = 0; i < p.window_h; ++i)
        for (int j = 0; j < p.window_w; ++j, ++at) {
          Vector& sum = *reinterpret_cast<Vector*>(window + i * pitch + j * p.f + c);
          sum += place == at ? given : Vector{};
        }
    }
  });
}

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
      visit(3 * i + j, *reinterpret_cast<const Vector*>(image + (i * s.w + j) * s.c));
}

void convolve_depthwise(const Shape& s, const float* image, const float* kernel, float* out) {
  const int64_t row = s.ow * s.c;
  for_vectors(row, [&](int64_t at, int64_t) {
    Vector filter[kTaps][1];
    load<kTaps, 1>(filter, kernel + at, row);
    for (int64_t y = 0; y < s.oh; ++y) {
      Vector sum = {};
      for_taps(s, image + y * s.w * s.c + at,
               [&](int tap, const Vector& pixel) { sum += pixel * filter[tap][0]; });
      *reinterpret_cast<Vector*>(out + y * row + at) = sum;
    }
  });
}

void add_depthwise_gradient(const Shape& s, const float* image, const float* grad, float* sums) {
  const int64_t row = s.ow * s.c;
  for_vectors(row, [&](int64_t at, int64_t first) {
    Vector sum[kTaps] = {};
    for (int64_t y = 0; y < s.oh; ++y) {
      const Vector given = *reinterpret_cast<const Vector*>(grad + y * row + at);
      for_taps(s, image + y * s.w * s.c + at,
               [&](int tap, const Vector& pixel) { sum[tap] += pixel * given; });
    }
    for (int tap = 0; tap < kTaps; ++tap)
      for (int64_t lane = first; lane < kLanes; ++lane)
        sums[tap * row + at + lane] += sum[tap][lane];
  });
}

using Array = ffi::Buffer<ffi::F32, 4>;
using Bias = ffi::Buffer<ffi::F32, 1>;
using Places = ffi::Buffer<ffi::S8, 4>;
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

int64_t image_size(const Shape& s) { return (s.bottom - s.top) * s.real_w * s.c; }  // not padded

// Room for one image with its padding, zero to begin with.
class Padded {
 public:
  explicit Padded(const Shape& s) : s_(s), numbers_(s.h * s.w * s.c) {}

  float* row(int64_t y) { return &numbers_[((s_.top + y) * s_.w + s_.left) * s_.c]; }
  const float* data() const { return numbers_.data(); }

 private:
  Shape s_;
  std::vector<float> numbers_;
};

// Hands out the images of a batch with their padding; each task has its own.
class Images {
 public:
  Images(const Shape& s, const float* images)
      : s_(s), images_(images), is_padded_(s.bottom - s.top != s.h || s.real_w != s.w),
        padded_(is_padded_ ? s : Shape{}) {}

  const float* operator[](int64_t i) {
    const float* image = images_ + i * image_size(s_);
    if (!is_padded_) return image;
    const int64_t row = s_.real_w * s_.c;
    for (int64_t y = 0; y < s_.bottom - s_.top; ++y, image += row)
      std::memcpy(padded_.row(y), image, row * sizeof(float));
    return padded_.data();
  }

 private:
  const Shape& s_;
  const float* images_;
  bool is_padded_;
  Padded padded_;
};

// The same for gradients of what was pooled: made from those of the pool's output.
class Unpooled {
 public:
  Unpooled(const Shape& s, const Pool& p, const float* grads, const int8_t* places)
      : s_(s), p_(p), grads_(grads), places_(places), padded_(s) {}

  const float* operator[](int64_t i) {
    const int64_t size = p_.oh * p_.ow * p_.f;
    for (int64_t y = 0; y < p_.h; ++y)
      std::memset(padded_.row(y), 0, p_.w * p_.f * sizeof(float));
    unpool(p_, grads_ + i * size, places_ + i * size, padded_.row(0), s_.w * s_.c);
    return padded_.data();
  }

 private:
  const Shape& s_;
  const Pool& p_;
  const float* grads_;
  const int8_t* places_;
  Padded padded_;
};

// Runs work(i) for the images of one of `tasks` even shares of a batch.
template <typename Work>
void for_share(int64_t images, int64_t task, int64_t tasks, const Work& work) {
  for (int64_t i = images * task / tasks; i < images * (task + 1) / tasks; ++i) work(i);
}

// make_grads() -> something that hands out an image's gradient.
template <typename MakeGrads>
void sum_kernel_gradients(ffi::ThreadPool& pool, int64_t tasks, const Shape& s, const float* images,
                          const MakeGrads& make_grads, float* total) {
  const int64_t size = s.kh * s.kw * s.c * s.f;
  // Each task sums on its own; the sums are then added in order, so that a repeat gives equal bits.
  std::vector<float> others((tasks - 1) * size);
  run_tasks(pool, tasks, [&](int64_t task) {
    float* sum = task ? others.data() + (task - 1) * size : total;
    std::memset(sum, 0, size * sizeof(float));
    Images padded(s, images);
    auto grads = make_grads();
    for_share(s.n, task, tasks,
              [&](int64_t i) { add_kernel_gradient(s, padded[i], grads[i], sum); });
  });
  for (int64_t task = 1; task < tasks; ++task)
    for (int64_t i = 0; i < size; ++i) total[i] += others[(task - 1) * size + i];
}

struct Rows {  // gradients as they are
  const Shape& s;
  const float* grads;
  const float* operator[](int64_t i) const { return grads + i * s.oh * s.ow * s.f; }
};

Pool pool_of(const Shape& s, Ints out, Ints window) {
  return {s.oh, s.ow, s.f, out[1], out[2], window[0], window[1], window[2], window[3]};
}

// What an image's gradient is computed from: the pooled output's gradient, by a convolution.
Pool pool_behind(const Shape& s, Ints out, Ints window) {
  return {s.bottom - s.top, s.real_w, s.c, out[1], out[2], window[0], window[1], window[2],
          window[3]};
}

ffi::Error convolution(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding, bool relu,
                       Array images, Array kernel, Bias bias, Result out) {
  const Shape s = shape_of(images.dimensions(), out->dimensions(), kernel.dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  run_tasks(pool, tasks, [&](int64_t task) {
    Images padded(s, images.typed_data());
    for_share(s.n, task, tasks, [&](int64_t i) {
      convolve(s, padded[i], kernel.typed_data(), bias.typed_data(), relu,
               out->typed_data() + i * s.oh * s.ow * s.f);
    });
  });
  return ffi::Error::Success();
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding,
                           Array images, Array grad, Result kernel) {
  const Shape s = shape_of(images.dimensions(), grad.dimensions(), kernel->dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  sum_kernel_gradients(pool, tasks, s, images.typed_data(),
                       [&] { return Rows{s, grad.typed_data()}; }, kernel->typed_data());
  return ffi::Error::Success();
}

// `conv`: height and width of the convolution's output. `window`: its sides, then its strides.
// Places are left out if there is no room for them.
ffi::Error pooled_convolution(ffi::ThreadPool pool_, int64_t tasks, Ints strides, Ints padding,
                              Ints conv, Ints window, Array images, Array kernel, Bias bias,
                              Result out, ffi::Result<Places> places) {
  const int64_t full[] = {0, conv[0], conv[1]};
  const Shape s = shape_of(images.dimensions(), Ints(full, 3), kernel.dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  const Pool p = pool_of(s, out->dimensions(), window);
  run_tasks(pool_, tasks, [&](int64_t task) {
    Images padded(s, images.typed_data());
    std::vector<float> whole(s.oh * s.ow * s.f);
    for_share(s.n, task, tasks, [&](int64_t i) {
      const int64_t at = i * p.oh * p.ow * p.f;
      convolve(s, padded[i], kernel.typed_data(), bias.typed_data(), true, whole.data());
      if (places->element_count())
        pool<true>(p, whole.data(), out->typed_data() + at, places->typed_data() + at);
      else
        pool<false>(p, whole.data(), out->typed_data() + at, nullptr);
    });
  });
  return ffi::Error::Success();
}

ffi::Error pooled_kernel_gradient(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding,
                                  Ints conv, Ints window, Array images, Array grad, Places places,
                                  Result kernel) {
  const int64_t full[] = {0, conv[0], conv[1]};
  const Shape s = shape_of(images.dimensions(), Ints(full, 3), kernel->dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  const Pool p = pool_of(s, grad.dimensions(), window);
  const Shape whole{0, s.oh, s.ow, s.f, 0, 0, 0, 0, 0, 0, 0, 0, s.oh, 0, s.ow};
  sum_kernel_gradients(
      pool, tasks, s, images.typed_data(),
      [&] { return Unpooled(whole, p, grad.typed_data(), places.typed_data()); },
      kernel->typed_data());
  return ffi::Error::Success();
}

// Padding is that of the convolution from the output's gradient to the image's, its kernel turned.
ffi::Error pooled_image_gradient(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding,
                                 Ints conv, Ints window, Array kernel, Array grad, Places places,
                                 Result image_grad) {
  const int64_t in[] = {grad.dimensions()[0], conv[0], conv[1], grad.dimensions()[3]};
  const Shape s = shape_of(Ints(in, 4), image_grad->dimensions(), kernel.dimensions(), strides,
                           padding);
  if (auto error = check(s); error.failure()) return error;
  const Pool p = pool_behind(s, grad.dimensions(), window);
  const std::vector<float> no_bias(s.f);
  run_tasks(pool, tasks, [&](int64_t task) {
    Unpooled whole(s, p, grad.typed_data(), places.typed_data());
    for_share(s.n, task, tasks, [&](int64_t i) {
      convolve(s, whole[i], kernel.typed_data(), no_bias.data(), false,
               image_grad->typed_data() + i * s.oh * s.ow * s.f);
    });
  });
  return ffi::Error::Success();
}

ffi::Error check_depthwise(const Shape& s, Ints kernel) {
  if (s.kh != 3 || s.kw != 3 || kernel[2] != 1 || s.f != s.c || s.ow * s.c < kLanes ||
      s.oh + 2 != s.h || s.ow + 2 != s.w)
    return ffi::Error::InvalidArgument("fer_jax native depthwise convolution: shapes do not fit");
  return ffi::Error::Success();
}

ffi::Error depthwise(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding, Array images,
                     Array kernel, Result out) {
  const Shape s = shape_of(images.dimensions(), out->dimensions(), kernel.dimensions(), strides,
                           padding);
  if (auto error = check_depthwise(s, kernel.dimensions()); error.failure()) return error;
  const int64_t row = s.ow * s.c;
  std::vector<float> repeated(kTaps * row);
  for (int64_t i = 0; i < kTaps * row; ++i)
    repeated[i] = kernel.typed_data()[i / row * s.c + i % s.c];
  run_tasks(pool, tasks, [&](int64_t task) {
    Images padded(s, images.typed_data());
    for_share(s.n, task, tasks, [&](int64_t i) {
      convolve_depthwise(s, padded[i], repeated.data(), out->typed_data() + i * s.oh * row);
    });
  });
  return ffi::Error::Success();
}

ffi::Error depthwise_kernel_gradient(ffi::ThreadPool pool, int64_t tasks, Ints strides,
                                     Ints padding, Array images, Array grad, Result kernel) {
  const Shape s = shape_of(images.dimensions(), grad.dimensions(), kernel->dimensions(), strides,
                           padding);
  if (auto error = check_depthwise(s, kernel->dimensions()); error.failure()) return error;
  const int64_t row = s.ow * s.c, size = kTaps * row;
  std::vector<float> sums(tasks * size);
  run_tasks(pool, tasks, [&](int64_t task) {
    Images padded(s, images.typed_data());
    for_share(s.n, task, tasks, [&](int64_t i) {
      add_depthwise_gradient(s, padded[i], grad.typed_data() + i * s.oh * row,
                             sums.data() + task * size);
    });
  });
  std::memset(kernel->typed_data(), 0, kTaps * s.c * sizeof(float));
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t i = 0; i < size; ++i)
      kernel->typed_data()[i / row * s.c + i % s.c] += sums[task * size + i];
  return ffi::Error::Success();
}

}  // namespace

#define SHARED                                                                             \
  ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("tasks").Attr<Ints>("strides").Attr<Ints>( \
      "padding")
#define POOLED SHARED.Attr<Ints>("conv").Attr<Ints>("window")

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_convolution, convolution,
    SHARED.Attr<bool>("relu").Arg<Array>().Arg<Array>().Arg<Bias>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_kernel_gradient, kernel_gradient,
                              SHARED.Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_pooled_convolution, pooled_convolution,
    POOLED.Arg<Array>().Arg<Array>().Arg<Bias>().Ret<Array>().Ret<Places>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_pooled_kernel_gradient, pooled_kernel_gradient,
                              POOLED.Arg<Array>().Arg<Array>().Arg<Places>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_pooled_image_gradient, pooled_image_gradient,
                              POOLED.Arg<Array>().Arg<Array>().Arg<Places>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_depthwise, depthwise,
                              SHARED.Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_depthwise_kernel_gradient, depthwise_kernel_gradient,
                              SHARED.Arg<Array>().Arg<Array>().Ret<Array>());
