// Convolution and max-pooling for XLA's CPU backend, called through its foreign function interface.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#include "depthwise.h"
#include "direct.h"
#include "pool.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

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
  explicit Padded(const Shape& s) : s_(s), numbers_(Room::zeros(s.h * s.w * s.c)) {}

  float* row(int64_t y) { return numbers_.data() + ((s_.top + y) * s_.w + s_.left) * s_.c; }
  const float* data() const { return numbers_.data(); }

 private:
  Shape s_;
  Room numbers_;
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

// A kernel made ready for the images of a batch, for the fastest of the ways to convolve.
class Kernel {
 public:
  Kernel(const Shape& s, const float* kernel)
      : s_(s), kernel_(kernel), tile_(best_tile(s)),
        points_(tile_ ? (tile_ + 2) * (tile_ + 2) * s.c * s.f : 0) {
    if (tile_ == 2) kernel_to_points<2>(s, kernel, points_.data());
    if (tile_ == 4) kernel_to_points<4>(s, kernel, points_.data());
  }

  // Convolves a task's share of a batch. Each result goes to room(i); done(i) is called when it is
  // whole, before room(i + 1) is written to.
  template <typename Images, typename Room, typename Done>
  void convolve(int64_t task, int64_t tasks, Images images, const float* bias, bool relu,
                const Room& room, const Done& done) const {
    const int64_t begin = s_.n * task / tasks, end = s_.n * (task + 1) / tasks;
    const float* points = points_.data();
    if (tile_ == 2)
      convolve_by_points<2>(s_, images, begin, end, points, bias, relu, room, done);
    else if (tile_ == 4)
      convolve_by_points<4>(s_, images, begin, end, points, bias, relu, room, done);
    else
      for (int64_t i = begin; i < end; ++i) {
        ::convolve(s_, images[i], kernel_, bias, relu, room(i));
        done(i);
      }
  }

 private:
  const Shape& s_;
  const float* kernel_;
  int tile_;
  Room points_;
};

// make_grads() -> something that hands out an image's gradient.
template <typename Gradients, typename MakeGrads>
void sum_gradients(ffi::ThreadPool& pool, int64_t tasks, const Shape& s, const float* images,
                   const MakeGrads& make_grads, float* total) {
  const int64_t size = Gradients::size(s);
  // Each task sums on its own; the sums are then added in order, so that a repeat gives equal bits.
  Room others((tasks - 1) * size);
  run_tasks(pool, tasks, [&](int64_t task) {
    float* sum = task ? others.data() + (task - 1) * size : total;
    std::memset(sum, 0, size * sizeof(float));
    Images padded(s, images);
    auto grads = make_grads();
    Gradients gradients(s, sum);
    for_share(s.n, task, tasks, [&](int64_t i) { gradients.add(padded[i], grads[i]); });
    gradients.finish();
  });
  for (int64_t task = 1; task < tasks; ++task)
    for (int64_t i = 0; i < size; ++i) total[i] += others.data()[(task - 1) * size + i];
}

template <int M, typename MakeGrads>
void sum_points_gradients(ffi::ThreadPool& pool, int64_t tasks, const Shape& s, const float* images,
                          const MakeGrads& make_grads, float* total) {
  Room points(PointsGradients<M>::size(s));
  sum_gradients<PointsGradients<M>>(pool, tasks, s, images, make_grads, points.data());
  points_to_kernel<M>(s, points.data(), total);
}

template <typename MakeGrads>
void sum_kernel_gradients(ffi::ThreadPool& pool, int64_t tasks, const Shape& s, const float* images,
                          const MakeGrads& make_grads, float* total) {
  const int tile = best_tile(s);
  if (tile == 2)
    sum_points_gradients<2>(pool, tasks, s, images, make_grads, total);
  else if (tile == 4)
    sum_points_gradients<4>(pool, tasks, s, images, make_grads, total);
  else
    sum_gradients<KernelGradients>(pool, tasks, s, images, make_grads, total);
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
  const Kernel ready(s, kernel.typed_data());
  run_tasks(pool, tasks, [&](int64_t task) {
    const auto room = [&](int64_t i) { return out->typed_data() + i * s.oh * s.ow * s.f; };
    ready.convolve(task, tasks, Images(s, images.typed_data()), bias.typed_data(), relu, room,
                   [](int64_t) {});
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
  const Kernel ready(s, kernel.typed_data());
  run_tasks(pool_, tasks, [&](int64_t task) {
    Room whole(s.oh * s.ow * s.f);
    const auto done = [&](int64_t i) {
      const int64_t at = i * p.oh * p.ow * p.f;
      if (places->element_count())
        pool<true>(p, whole.data(), out->typed_data() + at, places->typed_data() + at);
      else
        pool<false>(p, whole.data(), out->typed_data() + at, nullptr);
    };
    ready.convolve(task, tasks, Images(s, images.typed_data()), bias.typed_data(), true,
                   [&](int64_t) { return whole.data(); }, done);
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
  const Room no_bias = Room::zeros(s.f);
  const Kernel ready(s, kernel.typed_data());
  run_tasks(pool, tasks, [&](int64_t task) {
    const auto room = [&](int64_t i) { return image_grad->typed_data() + i * s.oh * s.ow * s.f; };
    ready.convolve(task, tasks, Unpooled(s, p, grad.typed_data(), places.typed_data()),
                   no_bias.data(), false, room, [](int64_t) {});
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
  Room repeated(kTaps * row);
  for (int64_t i = 0; i < kTaps * row; ++i)
    repeated.data()[i] = kernel.typed_data()[i / row * s.c + i % s.c];
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
  Room sums = Room::zeros(tasks * size);
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
      kernel->typed_data()[i / row * s.c + i % s.c] += sums.data()[task * size + i];
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
