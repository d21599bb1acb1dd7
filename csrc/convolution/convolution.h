// SPDX-License-Identifier: MIT
// The convolution over windows moved by positions: unfold and a matrix product, on every device with an unfold, or one
// kernel for both, on devices that have it (fused.h).
//
// NOTE [ Columns are temporary ]
// The columns take K times the memory of the input, where K is the number of taps. So no caller sees them and nothing
// keeps them: they are made for a few images at a time, and again in the backward. Autograd saves only the arguments.
// Where the gradient itself is differentiated, or in forward mode, the columns are ordinary intermediate results for
// the whole batch: there the derivatives are those of unfold and the matrix product.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../options.h"

namespace ddu::convolution {

using OptionalTensor = std::optional<at::Tensor>;

inline at::Tensor value_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() ? *tensor : at::Tensor();
}

inline OptionalTensor as_optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// The tensors of a call with N axes; omitted ones are undefined.
struct Arguments {
  at::Tensor input;      // [B, C, *size]
  at::Tensor weight;     // [O, C / groups, *kernel], or one per image: [B, O, C / groups, *kernel]
  at::Tensor positions;  // [B, dilation_groups * parameters, *out], any strides
  at::Tensor bias;       // [O]; if there is one weight per image also [B, O]
  at::Tensor mask;       // [B, mask_groups * taps, *out]

  std::vector<at::Tensor> list() const { return {input, weight, positions, bias, mask}; }

  // N, assuming a batched call. The checks refuse positions of an impossible rank; until then the input's rank counts.
  int64_t axes() const {
    for (const auto* const tensor : {&positions, &input}) {
      const int64_t axes = tensor->defined() && !tensor->is_nested() ? tensor->dim() - 2 : 0;
      if (axes >= 1 && axes <= kMaxAxes) {
        return axes;
      }
    }
    return 2;
  }
};

// The options common to every form of the operator, in the schema's order; kernel_size comes from the weight.
struct Options {
  static constexpr size_t kWindowLists = std::tuple_size_v<ddu::Options::Lists>;
  using Lists = std::array<ddu::Options::Ints, kWindowLists + 1>;

  Options(
      int64_t axes,
      const at::Tensor& weight,
      std::string_view source,
      at::IntArrayRef stride,
      at::IntArrayRef padding,
      at::IntArrayRef dilation,
      int64_t groups,
      int64_t dilation_groups,
      bool aligned,
      std::string_view padding_mode)
      : window(source, kernel_size_of(axes, weight), stride, padding, dilation, dilation_groups, aligned, padding_mode),
        groups(groups) {}

  explicit Options(const Lists& lists) : window(of_window(lists)), groups(lists.back()[0]) {}

  Lists lists() const {
    Lists result;
    const auto w = window.lists();
    std::copy(w.begin(), w.end(), result.begin());
    result.back() = {groups};
    return result;
  }

  // N: the weight gave kernel_size one entry per axis.
  int64_t axes() const { return static_cast<int64_t>(window.kernel_size.size()); }
  int64_t taps() const {
    int64_t result = 1;
    for (const auto size : window.kernel_size) {
      result *= size;
    }
    return result;
  }

  ddu::Options window;  // its groups are the dilation groups
  int64_t groups;

 private:
  static ddu::Options::Lists of_window(const Lists& lists) {
    ddu::Options::Lists result;
    std::copy_n(lists.begin(), kWindowLists, result.begin());
    return result;
  }

  static ddu::Options::Ints kernel_size_of(int64_t axes, const at::Tensor& weight) {
    // The checks refuse nested weights and weights of another rank; until then any kernel size will do.
    ddu::Options::Ints sizes(axes, 1);
    if (weight.defined() && !weight.is_nested() && (weight.dim() == axes + 2 || weight.dim() == axes + 3)) {
      for (int64_t a = 0; a < axes; ++a) {
        sizes[a] = weight.sym_size(a - axes).guard_int(__FILE__, __LINE__);
      }
    }
    return sizes;
  }
};

inline bool weight_per_image(const Arguments& a, const Options& options) {
  return a.weight.dim() == options.axes() + 3;
}

// O
inline c10::SymInt out_channels(const Arguments& a, const Options& options) {
  return a.weight.sym_size(a.weight.dim() - options.axes() - 2);
}

// The gradients that convolution_backward returns, in this order.
enum Gradient : size_t { kInput, kWeight, kPositions, kMask, kGradients };
using OutputMask = std::array<bool, kGradients>;
using Gradients = std::vector<at::Tensor>;  // undefined where not asked for

// ---- the operators through the dispatcher

at::Tensor convolution(const Arguments& a, const Options& options);
Gradients convolution_backward(
    const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// ---- parts of the operators

SymParams check(const char* op, const Arguments& a, const Options& options, const Caller& caller = {});
SymParams check_backward(
    const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// In one piece and in differentiable steps, from checked arguments: formulas.cpp. As in torch's own convolution, the
// result and the gradient with respect to the input are channels-last if the input is.
at::Tensor forward(const Arguments& a, const Options& options);
Gradients backward(const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// ---- the schemas' parameters, as functions of the arguments and options

template <at::Tensor (*f)(const Arguments&, const Options&)>
at::Tensor convolution_schema(
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& positions,
    const OptionalTensor& bias,
    const OptionalTensor& mask,
    std::string_view source,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    std::string_view padding_mode) {
  const Arguments a = {input, weight, positions, value_or_undefined(bias), value_or_undefined(mask)};
  return f(
      a, Options(a.axes(), weight, source, stride, padding, dilation, groups, dilation_groups, aligned, padding_mode));
}

template <Gradients (*f)(const at::Tensor&, const Arguments&, const Options&, const OutputMask&)>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> convolution_backward_schema(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& positions,
    const OptionalTensor& mask,
    std::string_view source,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    std::string_view padding_mode,
    std::array<bool, 4> output_mask) {
  const Arguments a = {input, weight, positions, at::Tensor(), value_or_undefined(mask)};
  const Options options(
      a.axes(), weight, source, stride, padding, dilation, groups, dilation_groups, aligned, padding_mode);
  auto result = f(grad_output, a, options, output_mask);
  // Operators must return defined tensors: an empty one stands for a gradient that was not asked for.
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = output_mask[i] ? result[i] : at::empty({0}, input.options());
  }
  return {result[kInput], result[kWeight], result[kPositions], result[kMask]};
}

}  // namespace ddu::convolution
