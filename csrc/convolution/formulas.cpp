// SPDX-License-Identifier: MIT
// The convolution in differentiable steps: unfold, mask and matrix product, and the gradients of them.

#include <ATen/ATen.h>

#include "../autograd/node.h"
#include "../autograd/product.h"
#include "../dispatch/calls.h"
#include "convolution.h"

namespace ddu::convolution {

namespace {

using at::Tensor;
using c10::SymInt;

// [O, C / groups, kH, kW] -> [batch * groups, O / groups, C / groups * kH * kW], for a product of every image and
// group.
Tensor matrices(const Tensor& weight, const SymInt& batch, int64_t groups) {
  const auto rows = weight.sym_size(0) / groups;
  const auto inner = weight.sym_size(1) * weight.sym_size(2) * weight.sym_size(3);
  const auto one = weight.reshape_symint({1, groups, rows, inner});
  return one.expand_symint({batch, groups, rows, inner}).reshape_symint({batch * groups, rows, inner});
}

// Columns or their like, [B, C * kH * kW, L] -> [B * groups, C / groups * kH * kW, L].
Tensor by_group(const Tensor& columns, int64_t groups) {
  const auto& sizes = columns.sym_sizes();
  return columns.reshape_symint({sizes[0] * groups, sizes[1] / groups, sizes[2]});
}

// [B, C * kH * kW, L] -> [B, G, C / G, kH * kW, L]: what the mask, [B, G, 1, kH * kW, L], is multiplied with.
Tensor by_tap(const Tensor& columns, const ddu::Options& window) {
  const auto& sizes = columns.sym_sizes();
  const auto taps = window.kernel_size[0] * window.kernel_size[1];
  return columns.reshape_symint({sizes[0], window.groups, sizes[1] / taps / window.groups, taps, sizes[2]});
}

Tensor modulated(const Tensor& columns, const Tensor& mask, const ddu::Options& window) {
  if (!mask.defined()) {
    return columns;
  }
  const auto taps = window.kernel_size[0] * window.kernel_size[1];
  const auto factor = mask.reshape_symint({mask.sym_size(0), window.groups, 1, taps, columns.sym_size(2)});
  return (by_tap(columns, window) * factor).reshape_symint(columns.sym_sizes());
}

}  // namespace

Tensor forward(const Arguments& a, const Options& options) {
  const auto batch = a.input.sym_size(0);
  const auto rows = a.weight.sym_size(0);
  const auto columns = modulated(unfold(a.input, a.dilation_map, options.window), a.mask, options.window);
  const auto left = matrices(a.weight, batch, options.groups);
  const auto right = by_group(columns, options.groups);
  Tensor bias;
  if (a.bias.defined()) {
    const auto per_group = rows / options.groups;
    bias = a.bias.reshape_symint({1, options.groups, per_group, 1})
               .expand_symint({batch, options.groups, per_group, 1})
               .reshape_symint({batch * options.groups, per_group, 1});
  }
  const auto result = product(left, right, bias);
  return result.reshape_symint({batch, rows, a.dilation_map.sym_size(2), a.dilation_map.sym_size(3)});
}

// The gradients that are asked for, in the order of Gradient.
Gradients backward(const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const WithoutAutocast guard;
  Gradients result(kGradients);
  const auto& window = options.window;
  const auto batch = a.input.sym_size(0);
  const auto rows = a.weight.sym_size(0);
  const auto positions = a.dilation_map.sym_size(2) * a.dilation_map.sym_size(3);
  const auto grad = grad_output.reshape_symint({batch * options.groups, rows / options.groups, positions});
  Tensor columns;
  if (needs[kWeight] || needs[kMask]) {
    columns = unfold(a.input, a.dilation_map, window);
  }
  if (needs[kInput] || needs[kMap] || needs[kMask]) {
    auto grad_columns = product(matrices(a.weight, batch, options.groups).transpose(1, 2), grad);
    const auto per_image = a.input.sym_size(1) * window.kernel_size[0] * window.kernel_size[1];
    grad_columns = grad_columns.reshape_symint({batch, per_image, positions});
    if (needs[kMask]) {
      result[kMask] =
          (by_tap(grad_columns, window) * by_tap(columns, window)).sum(2).reshape_symint(a.mask.sym_sizes());
    }
    if (needs[kInput] || needs[kMap]) {
      grad_columns = modulated(grad_columns, a.mask, window);
    }
    if (needs[kMap]) {
      std::tie(result[kInput], result[kMap]) = unfold_backward(grad_columns, a.input, a.dilation_map, window);
    } else if (needs[kInput]) {
      result[kInput] = fold(grad_columns, a.input.sym_sizes().slice(2), a.dilation_map, window);
    }
  }
  if (needs[kWeight]) {
    const auto right = by_group(modulated(columns, a.mask, window), options.groups).transpose(1, 2);
    const auto each = product(grad, right);
    const auto& sizes = each.sym_sizes();
    const auto sum = each.reshape_symint({batch, options.groups, sizes[1], sizes[2]}).sum(0);
    result[kWeight] = sum.reshape_symint(a.weight.sym_sizes());
  }
  return result;
}

}  // namespace ddu::convolution
