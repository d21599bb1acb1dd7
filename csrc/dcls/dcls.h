// SPDX-License-Identifier: MIT
// Dilated convolution with learnable spacings: a kernel whose few weights lie at real-valued positions.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "../options.h"

namespace ddu::dcls {

using OptionalTensor = std::optional<at::Tensor>;

inline at::Tensor value_or_undefined(const OptionalTensor& tensor) {
  return tensor.has_value() ? *tensor : at::Tensor();
}

// The options as the caller gave them; checks.h checks them.
struct Options {
  using Ints = ddu::Options::Ints;
  using Lists = std::array<Ints, 2>;

  Options(at::IntArrayRef kernel_size, std::string_view version)
      : kernel_size(kernel_size.begin(), kernel_size.end()), version(version) {}
  explicit Options(const Lists& lists) : kernel_size(lists[0]), version(lists[1].begin(), lists[1].end()) {}

  Lists lists() const { return {kernel_size, Ints(version.begin(), version.end())}; }

  Ints kernel_size;
  std::string version;
};

struct Arguments {
  at::Tensor weight;     // [O, I, count]
  at::Tensor positions;  // [N, O, I, count]
  at::Tensor sigma;      // like positions, or undefined

  std::vector<at::Tensor> list() const { return {weight, positions, sigma}; }
};

enum Gradient : size_t { kWeight, kPositions, kSigma, kGradients };  // the results of the backward, in this order
using OutputMask = std::array<bool, kGradients>;
using Gradients = std::vector<at::Tensor>;  // undefined where not asked for

// ---- the operators through the dispatcher

at::Tensor kernel(const Arguments& a, const Options& options);
Gradients kernel_backward(
    const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// ---- in differentiable steps of ATen, from checked arguments: formulas.cpp

at::Tensor forward(const Arguments& a, const Options& options);
Gradients backward(const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs);

// ---- the schemas' parameters, as functions of the arguments and options

template <at::Tensor (*f)(const Arguments&, const Options&)>
at::Tensor schema(
    const at::Tensor& weight,
    const at::Tensor& positions,
    at::IntArrayRef kernel_size,
    const OptionalTensor& sigma,
    std::string_view version) {
  return f({weight, positions, value_or_undefined(sigma)}, Options(kernel_size, version));
}

template <Gradients (*f)(const at::Tensor&, const Arguments&, const Options&, const OutputMask&)>
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_schema(
    const at::Tensor& grad_output,
    const at::Tensor& weight,
    const at::Tensor& positions,
    at::IntArrayRef kernel_size,
    const OptionalTensor& sigma,
    std::string_view version,
    std::array<bool, 3> output_mask) {
  auto result =
      f(grad_output, {weight, positions, value_or_undefined(sigma)}, Options(kernel_size, version), output_mask);
  // Operators must return defined tensors: an empty one stands for a gradient that was not asked for.
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = output_mask[i] ? result[i] : weight.new_empty({0});
  }
  return {result[kWeight], result[kPositions], result[kSigma]};
}

}  // namespace ddu::dcls
