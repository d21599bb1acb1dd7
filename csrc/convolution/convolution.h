// SPDX-License-Identifier: MIT
// The convolution with a dilation map: unfold and matrix product, for every device that has an unfold.
//
// NOTE [ Columns are temporary ]
// The columns take kH * kW times the memory of the input, so no caller sees them and nothing keeps them: they are made
// for as many images at a time as workspace_limit allows, and the backward makes them again. What autograd saves are
// the arguments. Only where the gradient is itself differentiated, or a tangent goes forward, are they ordinary
// intermediate results, of the whole batch: the derivatives are then those of unfold and the matrix product.

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

// The options that every form of the operator takes, in the order of the schema; kernel_size is the weight's.
struct Options {
  static constexpr size_t kWindowLists = std::tuple_size_v<ddu::Options::Lists>;
  using Lists = std::array<ddu::Options::Ints, kWindowLists + 1>;

  Options(
      const at::Tensor& weight,
      at::IntArrayRef stride,
      at::IntArrayRef padding,
      at::IntArrayRef dilation,
      int64_t groups,
      int64_t dilation_groups,
      bool aligned,
      std::string_view padding_mode,
      int64_t workspace_limit)
      : window(
            name_of(Source::kRates),
            kernel_size_of(weight),
            stride,
            padding,
            dilation,
            dilation_groups,
            aligned,
            padding_mode),
        groups(groups),
        workspace_limit(workspace_limit) {}

  explicit Options(const Lists& lists)
      : window(of_window(lists)), groups(lists.back()[0]), workspace_limit(lists.back()[1]) {}

  Lists lists() const {
    Lists result;
    const auto w = window.lists();
    std::copy(w.begin(), w.end(), result.begin());
    result.back() = {groups, workspace_limit};
    return result;
  }

  ddu::Options window;  // its groups are the dilation groups
  int64_t groups;
  int64_t workspace_limit;

 private:
  static ddu::Options::Lists of_window(const Lists& lists) {
    ddu::Options::Lists result;
    std::copy_n(lists.begin(), kWindowLists, result.begin());
    return result;
  }

  static std::array<int64_t, 2> kernel_size_of(const at::Tensor& weight) {
    // A weight of another rank, or a nested one, is refused by the checks; until then any kernel will do.
    if (!weight.defined() || weight.is_nested() || weight.dim() != 4) {
      return {1, 1};
    }
    return {weight.sym_size(2).guard_int(__FILE__, __LINE__), weight.sym_size(3).guard_int(__FILE__, __LINE__)};
  }
};

// The tensors of a call; one that was left out is undefined.
struct Arguments {
  at::Tensor input;         // [B, C, H, W]
  at::Tensor weight;        // [O, C / groups, kH, kW]
  at::Tensor dilation_map;  // [B, rates * G, H_out, W_out]
  at::Tensor bias;          // [O]
  at::Tensor mask;          // [B, G * kH * kW, H_out, W_out]

  std::vector<at::Tensor> list() const { return {input, weight, dilation_map, bias, mask}; }
};

enum Gradient : size_t { kInput, kWeight, kMap, kMask, kGradients };  // what conv2d_backward returns, in this order
using OutputMask = std::array<bool, kGradients>;
using Gradients = std::vector<at::Tensor>;  // undefined where they are not asked for

// ---- the operators through the dispatcher

at::Tensor conv2d(const Arguments& a, const Options& options);
Gradients conv2d_backward(
    const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// ---- their parts

SymParams check(const char* op, const Arguments& a, const Options& options, const Caller& caller = {});
SymParams check_backward(
    const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// In one piece and in differentiable steps, of checked arguments: convolution_formulas.cpp.
at::Tensor forward(const Arguments& a, const Options& options);
Gradients backward(const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// ---- the schemas' parameters, as functions of the arguments and options

template <at::Tensor (*f)(const Arguments&, const Options&)>
at::Tensor conv2d_schema(
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& dilation_map,
    const OptionalTensor& bias,
    const OptionalTensor& mask,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    std::string_view padding_mode,
    int64_t workspace_limit) {
  return f(
      {input, weight, dilation_map, value_or_undefined(bias), value_or_undefined(mask)},
      Options(weight, stride, padding, dilation, groups, dilation_groups, aligned, padding_mode, workspace_limit));
}

template <Gradients (*f)(const at::Tensor&, const Arguments&, const Options&, const OutputMask&)>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> conv2d_backward_schema(
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& dilation_map,
    const OptionalTensor& mask,
    at::IntArrayRef stride,
    at::IntArrayRef padding,
    at::IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    bool aligned,
    std::string_view padding_mode,
    int64_t workspace_limit,
    std::array<bool, 4> output_mask) {
  const Options options(
      weight, stride, padding, dilation, groups, dilation_groups, aligned, padding_mode, workspace_limit);
  auto result =
      f(grad_output, {input, weight, dilation_map, at::Tensor(), value_or_undefined(mask)}, options, output_mask);
  // A result of an operator is a tensor: an empty one stands for what was not asked for.
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = output_mask[i] ? result[i] : at::empty({0}, input.options());
  }
  return {result[kInput], result[kWeight], result[kMap], result[kMask]};
}

}  // namespace ddu::convolution
