// SPDX-License-Identifier: MIT
// unfold and its backward on the CPU, float32 and float64, from csrc/math: the same loops registered through LibTorch's
// stable ABI where TORCH_TARGET_VERSION is defined, else through the regular one. docs/stable_abi.md tells what for.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "math/bilinear.h"
#include "math/geometry.h"
#include "params.h"

#ifdef TORCH_TARGET_VERSION

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

namespace {
Tensor dense(const Tensor& tensor) { return torch::stable::contiguous(tensor); }
Tensor empty(const Tensor& like, const Ints& sizes) { return torch::stable::new_empty(like, sizes); }
Tensor zeros(const Tensor& like, const Ints& sizes) { return torch::stable::new_zeros(like, sizes); }
bool is_double(const Tensor& tensor) { return tensor.scalar_type() == torch::headeronly::ScalarType::Double; }
bool is_float(const Tensor& tensor) { return tensor.scalar_type() == torch::headeronly::ScalarType::Float; }
template <class F>
void parallel_for(int64_t size, const F& f) {
  torch::stable::parallel_for(0, size, 1, f);
}
}  // namespace
// STD_TORCH_CHECK would put a function, a path and a line before the text.
#define DDU_CHECK(condition, text) \
  if (!(condition)) throw std::runtime_error(text)
#define KERNEL(function) TORCH_BOX(&function)
#define LIBRARY(m) STABLE_TORCH_LIBRARY(ddu_stable, m)
#define LIBRARY_IMPL(key, m) STABLE_TORCH_LIBRARY_IMPL(ddu_stable, key, m)

#else

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

using at::Tensor;
using Ints = at::IntArrayRef;

namespace {
Tensor dense(const Tensor& tensor) { return tensor.contiguous(); }
Tensor empty(const Tensor& like, Ints sizes) { return at::empty(sizes, like.options()); }
Tensor zeros(const Tensor& like, Ints sizes) { return at::zeros(sizes, like.options()); }
bool is_double(const Tensor& tensor) { return tensor.scalar_type() == at::kDouble; }
bool is_float(const Tensor& tensor) { return tensor.scalar_type() == at::kFloat; }
template <class F>
void parallel_for(int64_t size, const F& f) {
  at::parallel_for(0, size, 1, f);
}
}  // namespace
#define DDU_CHECK TORCH_CHECK
#define KERNEL(function) TORCH_FN(function)
#define LIBRARY(m) TORCH_LIBRARY(ddu_regular, m)
#define LIBRARY_IMPL(key, m) TORCH_LIBRARY_IMPL(ddu_regular, key, m)

#endif

namespace {

using namespace ddu;

struct Window {
  const Ints& kernel_size;
  const Ints& stride;
  const Ints& padding;
  const Ints& dilation;
  int64_t groups;
  bool aligned;
};

UnfoldParams params_of(const Tensor& input, const Tensor& dilation_map, const Window& window) {
  DDU_CHECK(input.dim() == 4 && dilation_map.dim() == 4, "expected four dimensions");
  DDU_CHECK(
      (is_float(input) && is_float(dilation_map)) || (is_double(input) && is_double(dilation_map)),
      "expected input and dilation_map to be float32 or float64 both");
  const auto axis = [&](int k) {
    Axis<int64_t> result = {input.size(2 + k), 0, window.kernel_size[k], window.stride[k], window.padding[k],
                            window.dilation[k]};
    const int64_t reach = result.dilation * (result.kernel - 1);
    result.out_size = output_size(result.size + 2 * result.padding, reach, result.stride);
    return result;
  };
  UnfoldParams p = {input.size(0), input.size(1), window.groups, 0, axis(0), axis(1), window.aligned, {}};
  p.rates = dilation_map.size(1) / p.groups;
  DDU_CHECK(
      dilation_map.size(0) == p.batch && (p.rates == 1 || p.rates == 2) && dilation_map.size(1) == p.rates * p.groups &&
          dilation_map.size(2) == p.h.out_size && dilation_map.size(3) == p.w.out_size,
      "expected dilation_map to match the output grid");
  p.term = {{{1, 0}, {0, 0}}};
  return p;
}

// f(tap, position, its neighbours along both axes) for all taps of one group of one batch item.
template <class T, class F>
void for_each_tap(const UnfoldParams& p, const T* rates, const F& f) {
  const int64_t positions = p.h.out_size * p.w.out_size;
  for (int64_t tap = 0; tap < p.h.kernel * p.w.kernel; ++tap) {
    const T slope_h = tap_slope<T>(p.h, tap / p.w.kernel);
    const T slope_w = tap_slope<T>(p.w, tap % p.w.kernel);
    for (int64_t k = 0; k < positions; ++k) {
      const T rate_h = rates[k];
      const T rate_w = rates[(p.rates - 1) * positions + k];
      const auto y = neighbours<T, int64_t>(
          p.h.size, centre_pixel(p.h, k / p.w.out_size, p.aligned), centre_fraction<T>(p.h, p.aligned), slope_h,
          rate_h);
      const auto x = neighbours<T, int64_t>(
          p.w.size, centre_pixel(p.w, k % p.w.out_size, p.aligned), centre_fraction<T>(p.w, p.aligned), slope_w,
          rate_w);
      const T unit = T(1) + (rate_h - rate_h) + (rate_w - rate_w);  // or NaN
      f(tap, k, y, x, axis_weights(y.fraction, slope_h), axis_weights(x.fraction, slope_w), unit);
    }
  }
}

// f(pixel, weight) for the corners of a tap that lie in the image.
template <class T, class F>
void for_each_corner(
    const UnfoldParams& p, const Neighbours<T>& y, const Neighbours<T>& x, const CornerWeights<T>& w, const F& f) {
  const T weights[2][2] = {{w.nw, w.ne}, {w.sw, w.se}};
  for (int64_t a = 0; a < 2; ++a) {
    for (int64_t b = 0; b < 2; ++b) {
      const int64_t row = y.pixel + a;
      const int64_t column = x.pixel + b;
      if (row >= 0 && row < p.h.size && column >= 0 && column < p.w.size) {
        f(row * p.w.size + column, weights[a][b]);
      }
    }
  }
}

template <class T>
void unfold_loops(const UnfoldParams& p, const T* input, const T* rates, T* columns) {
  const int64_t taps = p.h.kernel * p.w.kernel;
  const int64_t positions = p.h.out_size * p.w.out_size;
  const int64_t channels = p.channels / p.groups;
  const int64_t plane = p.h.size * p.w.size;
  parallel_for(p.batch * p.groups, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      for_each_tap(
          p, rates + group * p.rates * positions,
          [&](int64_t tap, int64_t k, const auto& y, const auto& x, const auto& wy, const auto& wx, T unit) {
            const auto weights = corner_weights(wy, wx, p.term);
            for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
              T sum = 0;
              for_each_corner(p, y, x, weights, [&](int64_t pixel, T w) { sum += w * input[c * plane + pixel]; });
              columns[(c * taps + tap) * positions + k] = unit == unit ? sum : unit;
            }
          });
    }
  });
}

template <class T>
void backward_loops(
    const UnfoldParams& p, const T* grad_output, const T* input, const T* rates, T* grad_input, T* grad_rates) {
  const int64_t taps = p.h.kernel * p.w.kernel;
  const int64_t positions = p.h.out_size * p.w.out_size;
  const int64_t channels = p.channels / p.groups;
  const int64_t plane = p.h.size * p.w.size;
  const Term* const terms = gradient_terms(p.rates);
  parallel_for(p.batch * p.groups, [=](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      for_each_tap(
          p, rates + group * p.rates * positions,
          [&](int64_t tap, int64_t k, const auto& y, const auto& x, const auto& wy, const auto& wx, T unit) {
            for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
              const T grad = grad_output[(c * taps + tap) * positions + k];
              for_each_corner(p, y, x, corner_weights(wy, wx, p.term), [&](int64_t pixel, T w) {
                grad_input[c * plane + pixel] += w * grad;
              });
              for (int64_t r = 0; r < p.rates; ++r) {
                T sum = 0;
                for_each_corner(p, y, x, corner_weights(wy, wx, terms[r]), [&](int64_t pixel, T w) {
                  sum += w * input[c * plane + pixel];
                });
                grad_rates[(group * p.rates + r) * positions + k] += unit == unit ? sum * grad : unit;
              }
            }
          });
    }
  });
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

Tensor unfold(
    const Tensor& input,
    Ints kernel_size,
    const Tensor& dilation_map,
    Ints stride,
    Ints padding,
    Ints dilation,
    int64_t groups,
    bool aligned) {
  const auto p = params_of(input, dilation_map, {kernel_size, stride, padding, dilation, groups, aligned});
  const Tensor image = dense(input);
  const Tensor rates = dense(dilation_map);
  const Tensor columns = empty(input, {p.batch, p.channels * p.h.kernel * p.w.kernel, p.h.out_size * p.w.out_size});
  if (is_double(input)) {
    unfold_loops(p, data<double>(image), data<double>(rates), data<double>(columns));
  } else {
    unfold_loops(p, data<float>(image), data<float>(rates), data<float>(columns));
  }
  return columns;
}

std::tuple<Tensor, Tensor> unfold_backward(
    const Tensor& grad_output,
    const Tensor& input,
    Ints kernel_size,
    const Tensor& dilation_map,
    Ints stride,
    Ints padding,
    Ints dilation,
    int64_t groups,
    bool aligned) {
  const auto p = params_of(input, dilation_map, {kernel_size, stride, padding, dilation, groups, aligned});
  const Tensor grad = dense(grad_output);
  const Tensor image = dense(input);
  const Tensor rates = dense(dilation_map);
  const Tensor grad_input = zeros(input, {p.batch, p.channels, p.h.size, p.w.size});
  const Tensor grad_rates = zeros(input, {p.batch, p.rates * p.groups, p.h.out_size, p.w.out_size});
  if (is_double(input)) {
    backward_loops(
        p, data<double>(grad), data<double>(image), data<double>(rates), data<double>(grad_input),
        data<double>(grad_rates));
  } else {
    backward_loops(
        p, data<float>(grad), data<float>(image), data<float>(rates), data<float>(grad_input), data<float>(grad_rates));
  }
  return {grad_input, grad_rates};
}

}  // namespace

LIBRARY(m) {
  m.def(
      "unfold(Tensor input, int[2] kernel_size, Tensor dilation_map, int[2] stride=1, int[2] padding=0, "
      "int[2] dilation=1, int groups=1, bool aligned=True) -> Tensor");
  m.def(
      "unfold_backward(Tensor grad_output, Tensor input, int[2] kernel_size, Tensor dilation_map, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, bool aligned) -> (Tensor, Tensor)");
#ifdef TORCH_TARGET_VERSION
  // What an operator of the library needs, tried by itself.
  m.def("zeros_of(Tensor like, SymInt[2] size) -> Tensor");  // a schema as fold's, a kernel for Meta in C++
  m.def("last_size(Tensor tensor) -> int");                  // looks at a size
  m.def("warn(Tensor tensor, str text) -> Tensor");
#endif
}

LIBRARY_IMPL(CPU, m) {
  m.impl("unfold", KERNEL(unfold));
  m.impl("unfold_backward", KERNEL(unfold_backward));
}

#ifdef TORCH_TARGET_VERSION

namespace {

Tensor zeros_of(const Tensor& like, Ints size) { return zeros(like, size); }

int64_t last_size(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() > 0, "expected a dimension");
  return tensor.size(tensor.dim() - 1);
}

Tensor warn(const Tensor& tensor, std::string text) {
  aoti_torch_warn(__func__, __FILE__, __LINE__, text.c_str());
  return torch::stable::clone(tensor);
}

}  // namespace

LIBRARY_IMPL(CPU, m) {
  m.impl("zeros_of", KERNEL(zeros_of));
  m.impl("last_size", KERNEL(last_size));
  m.impl("warn", KERNEL(warn));
}

LIBRARY_IMPL(Meta, m) {
  m.impl("zeros_of", KERNEL(zeros_of));
  m.impl("last_size", KERNEL(last_size));
}

#endif
