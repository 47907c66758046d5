// Convolution, max-pooling and normalisation for XLA's CPU backend, called through its foreign function
// interface.
//
// What the Python side guarantees is checked here all the same, since a shape that does not fit would
// be a write out of bounds; and no exception leaves a handler or a task.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "amx.h"
#include "depthwise.h"
#include "direct.h"
#include "norm.h"
#include "pool.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Runs work(0) ... work(tasks - 1) on this thread and the pool's. This thread takes tasks too, so
// that it ends even if every thread of the pool waits in here. Throws what the first task to fail
// threw, when all have ended.
template <typename Work>
void run_tasks(ffi::ThreadPool pool, int64_t tasks, const Work& work) {
  struct Progress {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable changed;
  };
  auto progress = std::make_shared<Progress>();
  auto take = [progress, tasks, &work] {
    for (int64_t task; (task = progress->next++) < tasks;) {
      std::exception_ptr error;
      try {
        work(task);
      } catch (...) {
        error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(progress->mutex);
      if (!progress->error) progress->error = error;
      ++progress->done;
      progress->changed.notify_all();
    }
  };
  try {
    for (int64_t i = 1; i < tasks; ++i) pool.Schedule([take] { take(); });
  } catch (...) {
    // This thread takes what could not be handed over.
  }
  take();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->changed.wait(lock, [&] { return progress->done == tasks; });
  if (progress->error) std::rethrow_exception(progress->error);
}

using Array = ffi::Buffer<ffi::F32, 4>;
using Bias = ffi::Buffer<ffi::F32, 1>;
using Table = ffi::Buffer<ffi::F32, 2>;
using Argmax = ffi::Buffer<ffi::S8, 4>;
using Result = ffi::Result<Array>;
using Ints = ffi::Span<const int64_t>;

constexpr int64_t kMostTasks = 1 << 16;
constexpr int64_t kMostSide = 1 << 24;  // and of strides and paddings: sums of them do not overflow
constexpr int64_t kMostNumbers = int64_t{1} << 40;  // of an array
constexpr int64_t kMostInWindow = 127;              // an argmax is an int8

template <typename Numbers>
std::string text(const Numbers& numbers) {
  std::string all;
  for (int64_t number : numbers) all += (all.empty() ? "" : ", ") + std::to_string(number);
  return "[" + all + "]";
}

[[noreturn]] void refuse(const std::string& name, const std::string& found,
                         const std::string& allowed) {
  throw std::invalid_argument("fer_jax: " + name + " is " + found + "; it must be " + allowed);
}

void check_shape(const char* name, Ints found, std::initializer_list<int64_t> expected) {
  if (!std::equal(found.begin(), found.end(), expected.begin(), expected.end()))
    refuse(name, text(found), text(expected));
}

void check_range(const char* name, int64_t found, int64_t least, int64_t most) {
  if (found < least || found > most)
    refuse(name, std::to_string(found), std::to_string(least) + " to " + std::to_string(most));
}

void check_numbers(const char* name, Ints found, size_t count, int64_t least) {
  const bool fit = std::all_of(found.begin(), found.end(),
                               [&](int64_t x) { return x >= least && x <= kMostSide; });
  if (found.size() != count || !fit)
    refuse(name, text(found),
           std::to_string(count) + " numbers from " + std::to_string(least) + " to " +
               std::to_string(kMostSide));
}

void check_size(std::initializer_list<int64_t> shape) {
  int64_t size = 1;
  for (int64_t side : shape)
    if (__builtin_mul_overflow(size, side, &size) || size > kMostNumbers)
      refuse("a shape", text(shape), "of at most " + std::to_string(kMostNumbers) + " numbers");
}

// The convolution of images [n, h, w, c] with a kernel [kh, kw, c, f]; `padding` is top, bottom,
// left, right. It is checked that they fit.
Shape shape_of(std::initializer_list<int64_t> images, Ints kernel, Ints strides, Ints padding) {
  const int64_t* in = images.begin();
  check_numbers("strides", strides, 2, 1);
  check_numbers("padding", padding, 4, 0);
  check_range("the number of images", in[0], 0, kMostNumbers);
  check_numbers("an image's shape", Ints(in + 1, 3), 3, 1);
  check_numbers("the kernel's shape", kernel, 4, 1);
  const int64_t h = in[1] + padding[0] + padding[1], w = in[2] + padding[2] + padding[3];
  check_range("the kernel's height", kernel[0], 1, h);
  check_range("the kernel's width", kernel[1], 1, w);
  const Shape s{in[0],
                h,
                w,
                in[3],
                (h - kernel[0]) / strides[0] + 1,
                (w - kernel[1]) / strides[1] + 1,
                kernel[3],
                kernel[0],
                kernel[1],
                strides[0],
                strides[1],
                padding[0],
                padding[0] + in[1],
                padding[2],
                in[2]};
  check_size({s.h, s.w, s.c});
  check_size({s.kh, s.kw, s.c, s.f});
  check_size({s.oh, s.ow, s.f});
  check_size({s.n, s.oh, s.ow});
  return s;
}

Shape dense_shape_of(std::initializer_list<int64_t> images, Ints kernel, Ints strides,
                     Ints padding) {
  const Shape s = shape_of(images, kernel, strides, padding);
  check_shape("the kernel's shape", kernel, {s.kh, s.kw, s.c, s.f});
  if (s.f % 16) refuse("the kernel's last axis", std::to_string(s.f), "a multiple of 16");
  return s;
}

Shape dense_shape_of(const Array& images, Ints kernel, Ints strides, Ints padding) {
  const Ints in = images.dimensions();
  return dense_shape_of({in[0], in[1], in[2], in[3]}, kernel, strides, padding);
}

// Max-pooling of [n, h, w, f]; `window` is its sides, then its strides.
Pool pool_of(int64_t h, int64_t w, int64_t f, Ints window) {
  check_numbers("the window", window, 4, 1);
  check_range("the window's height", window[0], 1, h);
  check_range("the window's width", window[1], 1, w);
  check_range("the window's size", window[0] * window[1], 1, kMostInWindow);
  return {h,
          w,
          f,
          (h - window[0]) / window[2] + 1,
          (w - window[1]) / window[3] + 1,
          window[0],
          window[1],
          window[2],
          window[3]};
}

constexpr int64_t kOnes[] = {1, 1, 1, 1};
const Ints kNoStrides(kOnes, 2);

int64_t image_size(const Shape& s) { return (s.bottom - s.top) * s.real_w * s.c; }  // not padded

// One image with its padding, zero to begin with.
class Padded {
 public:
  explicit Padded(const Shape& s) : s_(s), numbers_(AlignedBuffer::zeros(s.h * s.w * s.c)) {}

  float* row(int64_t y) { return numbers_.data() + ((s_.top + y) * s_.w + s_.left) * s_.c; }
  const float* data() const { return numbers_.data(); }

 private:
  Shape s_;
  AlignedBuffer numbers_;
};

// Hands out the images of a batch with their padding; each task has its own.
class Images {
 public:
  Images(const Shape& s, const float* images)
      : s_(s), images_(images), is_padded_(s.bottom - s.top != s.h || s.real_w != s.w) {}

  const float* unpadded(int64_t i) const { return images_ + i * image_size(s_); }
  RealRows real(int64_t i) const { return {unpadded(i), s_.real_w * s_.c}; }

  const float* operator[](int64_t i) {
    const float* image = unpadded(i);
    if (!is_padded_) return image;
    if (!padded_) padded_ = std::make_unique<Padded>(s_);
    const int64_t row = s_.real_w * s_.c;
    for (int64_t y = 0; y < s_.bottom - s_.top; ++y, image += row)
      std::memcpy(padded_->row(y), image, row * sizeof(float));
    return padded_->data();
  }

 private:
  const Shape& s_;
  const float* images_;
  bool is_padded_;
  std::unique_ptr<Padded> padded_;
};

// The same for gradients of what was pooled: made from those of the pool's output.
class Unpooled {
 public:
  Unpooled(const Shape& s, const Pool& p, const float* grads, const int8_t* argmax)
      : s_(s), p_(p), grads_(grads), argmax_(argmax), padded_(s) {}

  const float* operator[](int64_t i) {
    const int64_t size = p_.oh * p_.ow * p_.f;
    for (int64_t y = 0; y < p_.h; ++y)
      std::memset(padded_.row(y), 0, p_.w * p_.f * sizeof(float));
    unpool(p_, grads_ + i * size, argmax_ + i * size, padded_.row(0), s_.w * s_.c);
    return padded_.data();
  }

  RealRows real(int64_t i) {
    (*this)[i];
    return {padded_.row(0), s_.w * s_.c};
  }

 private:
  const Shape& s_;
  const Pool& p_;
  const float* grads_;
  const int8_t* argmax_;
  Padded padded_;
};

// Runs work(i) for the images of one of `tasks` even shares of a batch.
template <typename Work>
void for_share(int64_t images, int64_t task, int64_t tasks, const Work& work) {
  for (int64_t i = images * task / tasks; i < images * (task + 1) / tasks; ++i) work(i);
}

// A kernel made ready for the images of a batch, for the fastest of the ways to convolve.
template <typename Type>
class Kernel {
 public:
  Kernel(const Shape& s, const float* kernel)
      : s_(s), kernel_(kernel), tile_(best_tile<Type>(s)) {
    with_tile(tile_, [&](auto side) {
      transformed_.emplace(transform_kernel<side, typename Type::Kernel>(s, kernel));
    });
  }

  // Convolves a task's share of a batch. Each result goes to output(i), a place of its own or one for
  // all (`apart`); done(i) is called when it is whole, before output(i + 1) is written to.
  template <typename Images, typename Output, typename Done>
  void convolve(int64_t task, int64_t tasks, Images images, const float* bias, bool relu,
                [[maybe_unused]] bool apart, const Output& output, const Done& done) const {
    const int64_t begin = s_.n * task / tasks, end = s_.n * (task + 1) / tasks;
    const bool by_tiles = with_tile(tile_, [&](auto side) {
      const int64_t tiles = Tiles<side>(s_).count;  // of an image
      convolve_winograd<side, Type>(s_, images, begin * tiles, end * tiles, *transformed_, s_.f,
                                    bias, relu, output, done);
    });
    for (int64_t i = begin; i < end && !by_tiles; ++i) {
      ::convolve(s_, images[i], kernel_, bias, relu, output(i));
      done(i);
    }
  }

 private:
  const Shape& s_;
  const float* kernel_;
  int tile_;
  std::optional<Transformed<typename Type::Kernel>> transformed_;
};

// bfloat16 again, in a way of its own.
struct AmxBfloat16 {};

template <>
class Kernel<AmxBfloat16> {
 public:
  Kernel(const Shape& s, const float* kernel) : s_(s), kernel_(s, kernel) {}

  template <typename Images, typename Output, typename Done>
  void convolve(int64_t task, int64_t tasks, Images images, const float* bias, bool relu, bool apart,
                const Output& output, const Done& done) const {
    const bool is_large = apart && s_.n * s_.oh * s_.ow * s_.f * 4 > kPastCacheBytes;
    const bool is_aligned = reinterpret_cast<uintptr_t>(output(0)) % 64 == 0;
    TileConvolution convolution(s_, kernel_, is_large && is_aligned);
    for_share(s_.n, task, tasks, [&](int64_t i) {
      convolution.run(images.real(i), bias, relu, output(i));
      done(i);
    });
  }

 private:
  const Shape& s_;
  TileKernel kernel_;
};

// Calls work with the type of the products.
template <typename Work>
void with_type(const Shape& s, bool bfloat16, const Work& work) {
  if (bfloat16 && has_amx() && s.c % kTile == 0)
    work(AmxBfloat16{});
  else if (bfloat16)
    work(Bfloat16{});
  else
    work(Float32{});
}

// Calls work with a kernel made ready.
template <typename Work>
void with_kernel(const Shape& s, bool bfloat16, const float* kernel, const Work& work) {
  with_type(s, bfloat16, [&](auto type) { work(Kernel<decltype(type)>(s, kernel)); });
}

// make_grads() -> something that hands out an image's gradient.
template <typename Gradients, typename MakeGrads>
void sum_gradients(ffi::ThreadPool pool, int64_t tasks, const Shape& s, const float* images,
                   const MakeGrads& make_grads, float* total) {
  const int64_t size = Gradients::size(s);
  // Each task sums on its own; the sums are then added in order, so that a repeat gives equal bits.
  AlignedBuffer others((tasks - 1) * size);
  run_tasks(pool, tasks, [&](int64_t task) {
    float* sum = task ? others.data() + (task - 1) * size : total;
    std::memset(sum, 0, size * sizeof(float));
    Images all(s, images);
    auto grads = make_grads();
    Gradients gradients(s, sum);
    for_share(s.n, task, tasks, [&](int64_t i) { gradients.add(all, i, grads[i]); });
    gradients.finish();
  });
  for (int64_t task = 1; task < tasks; ++task)
    for (int64_t i = 0; i < size; ++i) total[i] += others.data()[(task - 1) * size + i];
}

template <int M, typename Type, typename MakeGrads>
void sum_winograd_gradients(ffi::ThreadPool pool, int64_t tasks, const Shape& s,
                            const float* images, const MakeGrads& make_grads, float* total) {
  AlignedBuffer transformed(WinogradGradients<M, Type>::size(s));
  sum_gradients<WinogradGradients<M, Type>>(pool, tasks, s, images, make_grads, transformed.data());
  inverse_transform_kernel_gradient<M>(s, transformed.data(), total);
}

template <typename MakeGrads>
void sum_kernel_gradients(ffi::ThreadPool pool, int64_t tasks, const Shape& s, bool bfloat16,
                          const float* images, const MakeGrads& make_grads, float* total) {
  with_type(s, bfloat16, [&](auto type) {
    using Type = decltype(type);
    if constexpr (std::is_same_v<Type, AmxBfloat16>) {
      AlignedBuffer sums(TileGradients::size(s));
      sum_gradients<TileGradients>(pool, tasks, s, images, make_grads, sums.data());
      TileGradients::unpack(s, sums.data(), total);
    } else {
      const bool by_tiles = with_tile(best_tile<Type>(s), [&](auto side) {
        sum_winograd_gradients<side, Type>(pool, tasks, s, images, make_grads, total);
      });
      if (!by_tiles) sum_gradients<KernelGradients>(pool, tasks, s, images, make_grads, total);
    }
  });
}

struct Rows {  // gradients as they are
  const Shape& s;
  const float* grads;
  const float* operator[](int64_t i) const { return grads + i * s.oh * s.ow * s.f; }
};

// Each of the following checks what it was given and returns the work, which holds no reference to
// its arguments: they may be gone when it runs, the arrays' numbers are not.

auto convolution(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding, bool bfloat16,
                 bool relu, Array images, Array kernel, Bias bias, Result out) {
  const Shape s = dense_shape_of(images, kernel.dimensions(), strides, padding);
  check_shape("the bias's shape", bias.dimensions(), {s.f});
  check_shape("the output's shape", out->dimensions(), {s.n, s.oh, s.ow, s.f});
  return [=, image = images.typed_data(), kernel = kernel.typed_data(), bias = bias.typed_data(),
          out = out->typed_data()] {
    with_kernel(s, bfloat16, kernel, [&](const auto& ready) {
      run_tasks(pool, tasks, [&](int64_t task) {
        const auto output = [&](int64_t i) { return out + i * s.oh * s.ow * s.f; };
        ready.convolve(task, tasks, Images(s, image), bias, relu, true, output, [](int64_t) {});
      });
    });
  };
}

// `kernel` is [16, c * f], in panels. Tasks share the tiles, whatever the images: one alone keeps
// several cores busy. Where there are more features, and panels of them for as many tasks, they share
// those, and so read the kernel, which takes longer than the products of few tiles, only once between
// them. Tiles are of 2x2: an image has few, and for tiles of 4x4 there is 36 / 16 times as much of a
// kernel to read.
auto transformed_convolution(ffi::ThreadPool pool, int64_t tasks, Ints padding, bool relu,
                             Array images, Table kernel, Bias bias, Result out) {
  const int64_t f = bias.dimensions()[0], sides[] = {3, 3, images.dimensions()[3], f};
  const Shape s = dense_shape_of(images, Ints(sides, 4), kNoStrides, padding);
  if (s.c % 16) refuse("the images' last axis", std::to_string(s.c), "a multiple of 16");
  check_shape("the transformed kernel's shape", kernel.dimensions(), {kElements<2>, s.c * s.f});
  check_shape("the output's shape", out->dimensions(), {s.n, s.oh, s.ow, s.f});
  const int64_t all = s.n * Tiles<2>(s).count;
  // A share of fewer tiles than a block would walk over the kernel as one that fills it does.
  const int64_t panels = (f + kPanel - 1) / kPanel, blocks = (all + kShort - 1) / kShort;
  const bool share_features = f > all && panels >= std::min(tasks, blocks);
  return [=, tasks = std::clamp<int64_t>(share_features ? panels : blocks, 1, tasks),
          images = images.typed_data(), kernel = kernel.typed_data(), bias = bias.typed_data(),
          out = out->typed_data()] {
    run_tasks(pool, tasks, [&](int64_t task) {
      int64_t tiles[] = {0, all}, features[] = {0, f};
      for (int64_t i = 0; i < 2; ++i)
        if (share_features)
          features[i] = std::min(panels * (task + i) / tasks * kPanel, f);
        else
          tiles[i] = all * (task + i) / tasks;
      const KernelPanels ready{kernel + features[0] * s.c, s.c * f};
      const auto output = [&](int64_t i) { return out + i * s.oh * s.ow * f + features[0]; };
      Images padded(s, images);
      convolve_winograd<2, Float32>(s, padded, tiles[0], tiles[1], ready, features[1] - features[0],
                                    bias + features[0], relu, output, [](int64_t) {});
    });
  };
}

auto kernel_gradient(ffi::ThreadPool pool, int64_t tasks, Ints strides, Ints padding,
                     bool bfloat16, Array images, Array grad, Result kernel) {
  const Shape s = dense_shape_of(images, kernel->dimensions(), strides, padding);
  check_shape("the gradient's shape", grad.dimensions(), {s.n, s.oh, s.ow, s.f});
  return [=, images = images.typed_data(), grad = grad.typed_data(),
          kernel = kernel->typed_data()] {
    sum_kernel_gradients(
        pool, tasks, s, bfloat16, images, [&] { return Rows{s, grad}; }, kernel);
  };
}

// The argmax is left out if its result is empty.
auto pooled_convolution(ffi::ThreadPool pool_, int64_t tasks, Ints padding, Ints window,
                        bool bfloat16, Array images, Array kernel, Bias bias, Result out,
                        ffi::Result<Argmax> argmax) {
  const Shape s = dense_shape_of(images, kernel.dimensions(), kNoStrides, padding);
  const Pool p = pool_of(s.oh, s.ow, s.f, window);
  check_shape("the bias's shape", bias.dimensions(), {s.f});
  check_shape("the output's shape", out->dimensions(), {s.n, p.oh, p.ow, s.f});
  const bool with_argmax = argmax->element_count() > 0;
  if (with_argmax)
    check_shape("the argmax's shape", argmax->dimensions(), {s.n, p.oh, p.ow, s.f});
  return [=, images = images.typed_data(), kernel = kernel.typed_data(), bias = bias.typed_data(),
          out = out->typed_data(), argmax = argmax->typed_data()] {
    with_kernel(s, bfloat16, kernel, [&](const auto& ready) {
      run_tasks(pool_, tasks, [&](int64_t task) {
        AlignedBuffer whole(s.oh * s.ow * s.f);
        const auto done = [&](int64_t i) {
          const int64_t at = i * p.oh * p.ow * p.f;
          if (with_argmax)
            pool<true>(p, whole.data(), out + at, argmax + at);
          else
            pool<false>(p, whole.data(), out + at, nullptr);
        };
        ready.convolve(task, tasks, Images(s, images), bias, true, false,
                       [&](int64_t) { return whole.data(); }, done);
      });
    });
  };
}

auto pooled_kernel_gradient(ffi::ThreadPool pool, int64_t tasks, Ints padding, Ints window,
                            bool bfloat16, Array images, Array grad, Argmax argmax, Result kernel) {
  const Shape s = dense_shape_of(images, kernel->dimensions(), kNoStrides, padding);
  const Pool p = pool_of(s.oh, s.ow, s.f, window);
  check_shape("the gradient's shape", grad.dimensions(), {s.n, p.oh, p.ow, s.f});
  check_shape("the argmax's shape", argmax.dimensions(), {s.n, p.oh, p.ow, s.f});
  return [=, images = images.typed_data(), grad = grad.typed_data(),
          argmax = argmax.typed_data(), kernel = kernel->typed_data()] {
    const Shape whole{0, s.oh, s.ow, s.f, 0, 0, 0, 0, 0, 0, 0, 0, s.oh, 0, s.ow};
    sum_kernel_gradients(pool, tasks, s, bfloat16, images,
                         [&] { return Unpooled(whole, p, grad, argmax); }, kernel);
  };
}

// The convolution that leads from the output's gradient to the image's: its kernel is flipped, and
// `padding` is its own.
auto pooled_image_gradient(ffi::ThreadPool pool, int64_t tasks, Ints padding, Ints window,
                           bool bfloat16, Array kernel, Array grad, Argmax argmax, Result image_grad) {
  check_numbers("padding", padding, 4, 0);
  const Ints to = image_grad->dimensions(), from = grad.dimensions(), sides = kernel.dimensions();
  check_numbers("an image's shape", Ints(to.begin() + 1, 3), 3, 1);
  check_numbers("the kernel's shape", sides, 4, 1);
  const Shape s = dense_shape_of({from[0], to[1] + sides[0] - 1 - padding[0] - padding[1],
                                  to[2] + sides[1] - 1 - padding[2] - padding[3], from[3]},
                                 sides, kNoStrides, padding);
  if (s.c % 16) refuse("the gradient's last axis", std::to_string(s.c), "a multiple of 16");
  const Pool p = pool_of(s.bottom - s.top, s.real_w, s.c, window);
  check_shape("the gradient's shape", from, {s.n, p.oh, p.ow, s.c});
  check_shape("the argmax's shape", argmax.dimensions(), {s.n, p.oh, p.ow, s.c});
  check_shape("the images' shape", to, {s.n, s.oh, s.ow, s.f});
  return [=, kernel = kernel.typed_data(), grad = grad.typed_data(),
          argmax = argmax.typed_data(), image_grad = image_grad->typed_data()] {
    const AlignedBuffer no_bias = AlignedBuffer::zeros(s.f);
    with_kernel(s, bfloat16, kernel, [&](const auto& ready) {
      run_tasks(pool, tasks, [&](int64_t task) {
        const auto output = [&](int64_t i) { return image_grad + i * s.oh * s.ow * s.f; };
        ready.convolve(task, tasks, Unpooled(s, p, grad, argmax), no_bias.data(), false, true,
                       output, [](int64_t) {});
      });
    });
  };
}

Shape depthwise_shape_of(const Array& images, Ints kernel) {
  const Ints in = images.dimensions();
  const Shape s = shape_of({in[0], in[1], in[2], in[3]}, kernel, kNoStrides, Ints(kOnes, 4));
  check_shape("the kernel's shape", kernel, {3, 3, 1, s.c});
  check_range("the numbers in an image's row", s.ow * s.c, kLanes, kMostNumbers);
  return s;
}

auto depthwise(ffi::ThreadPool pool, int64_t tasks, Array images, Array kernel, Result out) {
  const Shape s = depthwise_shape_of(images, kernel.dimensions());
  check_shape("the output's shape", out->dimensions(), {s.n, s.oh, s.ow, s.c});
  return [=, images = images.typed_data(), kernel = kernel.typed_data(), out = out->typed_data()] {
    const int64_t row = s.ow * s.c;
    AlignedBuffer repeated(kTaps * row);
    for (int64_t i = 0; i < kTaps * row; ++i)
      repeated.data()[i] = kernel[i / row * s.c + i % s.c];
    run_tasks(pool, tasks, [&](int64_t task) {
      Images padded(s, images);
      for_share(s.n, task, tasks, [&](int64_t i) {
        convolve_depthwise(s, padded[i], repeated.data(), out + i * s.oh * row);
      });
    });
  };
}

auto depthwise_kernel_gradient(ffi::ThreadPool pool, int64_t tasks, Array images, Array grad,
                               Result kernel) {
  const Shape s = depthwise_shape_of(images, kernel->dimensions());
  check_shape("the gradient's shape", grad.dimensions(), {s.n, s.oh, s.ow, s.c});
  return [=, images = images.typed_data(), grad = grad.typed_data(),
          kernel = kernel->typed_data()] {
    const int64_t row = s.ow * s.c, size = kTaps * row;
    AlignedBuffer sums = AlignedBuffer::zeros(tasks * size);
    run_tasks(pool, tasks, [&](int64_t task) {
      Images padded(s, images);
      for_share(s.n, task, tasks, [&](int64_t i) {
        add_depthwise_gradient(s, padded[i], grad + i * s.oh * row, sums.data() + task * size);
      });
    });
    std::memset(kernel, 0, kTaps * s.c * sizeof(float));
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t i = 0; i < size; ++i)
        kernel[i / row * s.c + i % s.c] += sums.data()[task * size + i];
  };
}

// Batches of [n, h, w, c], c a multiple of 16.
void check_channels(const Array& images) {
  const Ints in = images.dimensions();
  check_numbers("an image's shape", Ints(in.begin() + 1, 3), 3, 1);
  check_range("the number of images", in[0], 1, kMostNumbers);
  check_size({in[0], in[1], in[2], in[3]});
  if (in[3] % 16) refuse("the images' last axis", std::to_string(in[3]), "a multiple of 16");
}

// [2, c]: means, and variances about them.
auto moments(ffi::ThreadPool pool, int64_t tasks, Array images, ffi::Result<Table> out) {
  check_channels(images);
  const Ints in = images.dimensions();
  const int64_t n = in[0], positions = in[1] * in[2], c = in[3];
  check_shape("the moments' shape", out->dimensions(), {2, c});
  return [=, tasks = std::min(tasks, n), images = images.typed_data(), out = out->typed_data()] {
    std::vector<Moments> parts;
    for (int64_t task = 0; task < tasks; ++task) parts.emplace_back(c);
    run_tasks(pool, tasks, [&](int64_t task) {
      Moments few(c);
      for_share(n, task, tasks, [&](int64_t i) {
        parts[task].add(images + i * positions * c, positions, few);
      });
    });
    for (int64_t task = 1; task < tasks; ++task) parts[0].add(parts[task]);
    std::memcpy(out, parts[0].mean(), c * sizeof(float));
    for (int64_t f = 0; f < c; ++f) out[c + f] = parts[0].variance(f);
  };
}

// Sums up over a batch of n images: add(i, sums) adds what there is of image i to [2, c]. Each task has
// sums of its own, which are then added in order.
template <typename Add>
void sum_norm_gradients(ffi::ThreadPool pool, int64_t tasks, int64_t n, int64_t c, float* out,
                        const Add& add) {
  AlignedBuffer sums = AlignedBuffer::zeros(tasks * 2 * c);
  run_tasks(pool, tasks, [&](int64_t task) {
    for_share(n, task, tasks, [&](int64_t i) { add(i, sums.data() + task * 2 * c); });
  });
  std::memcpy(out, sums.data(), 2 * c * sizeof(float));
  for (int64_t i = 2 * c; i < tasks * 2 * c; ++i) out[i % (2 * c)] += sums.data()[i];
}

// `numbers` are [4, c].
Normalisation normalisation_of(const float* numbers, int64_t c) {
  return {numbers, numbers + c, numbers + 2 * c, numbers + 3 * c};
}

// [2, c]: what `add_gradients` adds up.
auto norm_gradient_sums(ffi::ThreadPool pool, int64_t tasks, bool relu, Array images, Array grad,
                        Table normalisation, ffi::Result<Table> out) {
  check_channels(images);
  const Ints in = images.dimensions();
  const int64_t n = in[0], positions = in[1] * in[2], c = in[3];
  check_shape("the gradient's shape", grad.dimensions(), {n, in[1], in[2], c});
  check_shape("the normalisation's shape", normalisation.dimensions(), {4, c});
  check_shape("the sums' shape", out->dimensions(), {2, c});
  return [=, tasks = std::min(tasks, n), images = images.typed_data(), grad = grad.typed_data(),
          numbers = normalisation.typed_data(), out = out->typed_data()] {
    const Normalisation how = normalisation_of(numbers, c);
    sum_norm_gradients(pool, tasks, n, c, out, [&](int64_t i, float* sums) {
      const int64_t at = i * positions * c;
      if (relu)
        add_gradients<true>(how, images + at, grad + at, positions, c, sums);
      else
        add_gradients<false>(how, images + at, grad + at, positions, c, sums);
    });
  };
}

// The max-pool behind a normalisation: its windows of 2x2 lie side by side and leave nothing out.
Pool tiling_of(const Array& images) {
  check_channels(images);
  const Ints in = images.dimensions();
  constexpr int64_t kSides[] = {2, 2, 2, 2};
  if (in[1] % 2 || in[2] % 2) refuse("an image's shape", text(in), "even in height and width");
  return pool_of(in[1], in[2], in[3], Ints(kSides, 4));
}

// Normalisation, ReLU and max-pooling.
auto pooled_norm(ffi::ThreadPool pool, int64_t tasks, Array images, Table normalisation, Result out,
                 ffi::Result<Argmax> argmax) {
  const Pool p = tiling_of(images);
  const int64_t n = images.dimensions()[0];
  check_shape("the normalisation's shape", normalisation.dimensions(), {4, p.f});
  check_shape("the output's shape", out->dimensions(), {n, p.oh, p.ow, p.f});
  check_shape("the argmax's shape", argmax->dimensions(), {n, p.oh, p.ow, p.f});
  return [=, images = images.typed_data(), numbers = normalisation.typed_data(),
          out = out->typed_data(), argmax = argmax->typed_data()] {
    const Normalisation how = normalisation_of(numbers, p.f);
    run_tasks(pool, tasks, [&](int64_t task) {
      for_share(n, task, tasks, [&](int64_t i) {
        const int64_t at = i * p.oh * p.ow * p.f;
        pool_normalised(how, p, images + i * p.h * p.w * p.f, out + at, argmax + at);
      });
    });
  };
}

// What both gradients of that are given.
Pool check_pooled_norm(const Array& images, const Array& grad, const Argmax& argmax,
                       const Table& normalisation) {
  const Pool p = tiling_of(images);
  const int64_t n = images.dimensions()[0];
  check_shape("the gradient's shape", grad.dimensions(), {n, p.oh, p.ow, p.f});
  check_shape("the argmax's shape", argmax.dimensions(), {n, p.oh, p.ow, p.f});
  check_shape("the normalisation's shape", normalisation.dimensions(), {4, p.f});
  return p;
}

// [2, c], as norm_gradient_sums.
auto pooled_norm_gradient_sums(ffi::ThreadPool pool, int64_t tasks, Array images, Array grad,
                               Argmax argmax, Table normalisation, ffi::Result<Table> out) {
  const Pool p = check_pooled_norm(images, grad, argmax, normalisation);
  const int64_t n = images.dimensions()[0];
  check_shape("the sums' shape", out->dimensions(), {2, p.f});
  return [=, tasks = std::min(tasks, n), images = images.typed_data(), grad = grad.typed_data(),
          argmax = argmax.typed_data(), numbers = normalisation.typed_data(),
          out = out->typed_data()] {
    const Normalisation how = normalisation_of(numbers, p.f);
    sum_norm_gradients(pool, tasks, n, p.f, out, [&](int64_t i, float* sums) {
      const int64_t at = i * p.oh * p.ow * p.f, image = i * p.h * p.w * p.f;
      add_pooled_gradients(how, p, images + image, grad + at, argmax + at, sums);
    });
  };
}

auto pooled_norm_gradient(ffi::ThreadPool pool, int64_t tasks, Array images, Array grad, Argmax argmax,
                          Table normalisation, Table means, Result out) {
  const Pool p = check_pooled_norm(images, grad, argmax, normalisation);
  const int64_t n = images.dimensions()[0];
  check_shape("the means' shape", means.dimensions(), {2, p.f});
  check_shape("the output's shape", out->dimensions(), {n, p.h, p.w, p.f});
  return [=, images = images.typed_data(), grad = grad.typed_data(), argmax = argmax.typed_data(),
          numbers = normalisation.typed_data(), means = means.typed_data(),
          out = out->typed_data()] {
    const Normalisation how = normalisation_of(numbers, p.f);
    run_tasks(pool, tasks, [&](int64_t task) {
      for_share(n, task, tasks, [&](int64_t i) {
        const int64_t at = i * p.oh * p.ow * p.f, image = i * p.h * p.w * p.f;
        pooled_normalisation_gradient(how, p, means, images + image, grad + at, argmax + at,
                                      out + image);
      });
    });
  };
}

// Returns what `work` throws as XLA takes it.
template <typename Work>
ffi::Error error_of(const Work& work) {
  try {
    work();
    return ffi::Error::Success();
  } catch (const std::invalid_argument& error) {
    return ffi::Error::InvalidArgument(error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "fer_jax: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  } catch (...) {
    return ffi::Error::Internal("fer_jax: an unknown exception");
  }
}

void settle(ffi::Promise& promise, const ffi::Error& error) {
  if (error.success())
    promise.SetAvailable();
  else
    promise.SetError(error);
}

// A handler that runs what `function` returns. Work of one task goes to a thread of the pool, which
// then goes on with what follows it: a step on the caller's thread shares the cores with the pool's,
// which spin when idle, and takes up to a fifth longer. More tasks need `pool`, which XLA takes away
// when a handler returns.
template <auto function>
struct Handler {
  template <typename... Arguments>
  ffi::Future operator()(ffi::ThreadPool pool, int64_t tasks, Arguments... arguments) const {
    ffi::Promise promise;
    ffi::Future future(promise);
    const ffi::Error error = error_of([&] {
      check_range("the number of tasks", tasks, 1, kMostTasks);
      const auto work = function(pool, tasks, arguments...);
      if (tasks == 1)
        pool.Schedule([promise, work]() mutable { settle(promise, error_of(work)); });
      else {
        work();
        promise.SetAvailable();
      }
    });
    if (error.failure()) promise.SetError(error);
    return future;
  }
};

}  // namespace

// Whether products of bfloat16 are fast here: they are correct anywhere. Intel's processors have the
// instruction for vectors too, at half the speed of float32's (libxsmm/tpp-mlir, issue 1025).
extern "C" bool fer_jax_has_bfloat16() {
  if (has_amx()) return true;
#if defined(__AVX512BF16__)
  __builtin_cpu_init();
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// How many columns of a transformed kernel lie together: see `kPanel`.
extern "C" int64_t fer_jax_panel() { return kPanel; }

// Whether they are computed with AMX, where channels permit.
extern "C" bool fer_jax_has_amx() { return has_amx(); }

#define SHARED ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Attr<int64_t>("tasks")
#define DENSE SHARED.Attr<Ints>("strides").Attr<Ints>("padding").Attr<bool>("bfloat16")
#define POOLED SHARED.Attr<Ints>("padding").Attr<Ints>("window").Attr<bool>("bfloat16")

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_convolution, Handler<convolution>(),
    DENSE.Attr<bool>("relu").Arg<Array>().Arg<Array>().Arg<Bias>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_transformed_convolution, Handler<transformed_convolution>(),
    SHARED.Attr<Ints>("padding").Attr<bool>("relu").Arg<Array>().Arg<Table>().Arg<Bias>()
        .Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_kernel_gradient, Handler<kernel_gradient>(),
                              DENSE.Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_pooled_convolution, Handler<pooled_convolution>(),
    POOLED.Arg<Array>().Arg<Array>().Arg<Bias>().Ret<Array>().Ret<Argmax>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_pooled_kernel_gradient, Handler<pooled_kernel_gradient>(),
                              POOLED.Arg<Array>().Arg<Array>().Arg<Argmax>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_pooled_image_gradient, Handler<pooled_image_gradient>(),
                              POOLED.Arg<Array>().Arg<Array>().Arg<Argmax>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_moments, Handler<moments>(),
                              SHARED.Arg<Array>().Ret<Table>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_norm_gradient_sums, Handler<norm_gradient_sums>(),
    SHARED.Attr<bool>("relu").Arg<Array>().Arg<Array>().Arg<Table>().Ret<Table>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_pooled_norm, Handler<pooled_norm>(),
                              SHARED.Arg<Array>().Arg<Table>().Ret<Array>().Ret<Argmax>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_pooled_norm_gradient_sums, Handler<pooled_norm_gradient_sums>(),
    SHARED.Arg<Array>().Arg<Array>().Arg<Argmax>().Arg<Table>().Ret<Table>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    fer_jax_pooled_norm_gradient, Handler<pooled_norm_gradient>(),
    SHARED.Arg<Array>().Arg<Array>().Arg<Argmax>().Arg<Table>().Arg<Table>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_depthwise, Handler<depthwise>(),
                              SHARED.Arg<Array>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(fer_jax_depthwise_kernel_gradient,
                              Handler<depthwise_kernel_gradient>(),
                              SHARED.Arg<Array>().Arg<Array>().Ret<Array>());
