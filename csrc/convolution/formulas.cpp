// SPDX-License-Identifier: MIT
// The convolution in differentiable steps (unfold, mask and matrix product), and its gradients.

#include <ATen/ATen.h>

#include "../autograd/node.h"
#include "../autograd/product.h"
#include "../dispatch/calls.h"
#include "convolution.h"

namespace ddu::convolution {

namespace {

using at::Tensor;
using c10::SymInt;

// The weight as [batch * groups, O / groups, C / groups * taps], for one product per image and group.
Tensor matrices(const Arguments& a, const Options& options) {
  const auto batch = a.input.sym_size(0);
  const auto rows = out_channels(a, options) / options.groups;
  const auto inner = a.weight.sym_size(a.weight.dim() - options.axes() - 1) * options.taps();
  const auto images = weight_per_image(a, options) ? batch : SymInt(1);
  return a.weight.reshape_symint({images, options.groups, rows, inner})
      .expand_symint({batch, options.groups, rows, inner})
      .reshape_symint({batch * options.groups, rows, inner});
}

// The bias as [batch * groups, O / groups, 1].
Tensor addend(const Arguments& a, const Options& options) {
  if (!a.bias.defined()) {
    return a.bias;
  }
  const auto batch = a.input.sym_size(0);
  const auto rows = out_channels(a, options) / options.groups;
  const auto images = a.bias.dim() == 2 ? batch : SymInt(1);
  return a.bias.reshape_symint({images, options.groups, rows, 1})
      .expand_symint({batch, options.groups, rows, 1})
      .reshape_symint({batch * options.groups, rows, 1});
}

// Columns, or a tensor of their shape: [B, C * taps, L] -> [B * groups, C / groups * taps, L].
Tensor by_group(const Tensor& columns, int64_t groups) {
  const auto& sizes = columns.sym_sizes();
  return columns.reshape_symint({sizes[0] * groups, sizes[1] / groups, sizes[2]});
}

// [B, C * taps, L] -> [B, M, C / M, taps, L], to be multiplied by the mask, [B, M, 1, taps, L].
Tensor by_tap(const Tensor& columns, const Tensor& mask, int64_t taps) {
  const auto& sizes = columns.sym_sizes();
  const auto groups = mask.sym_size(1) / taps;
  return columns.reshape_symint({sizes[0], groups, sizes[1] / taps / groups, taps, sizes[2]});
}

Tensor modulated(const Tensor& columns, const Tensor& mask, int64_t taps) {
  if (!mask.defined()) {
    return columns;
  }
  const auto factor = mask.reshape_symint({mask.sym_size(0), mask.sym_size(1) / taps, 1, taps, columns.sym_size(2)});
  return (by_tap(columns, mask, taps) * factor).reshape_symint(columns.sym_sizes());
}

}  // namespace

Tensor forward(const Arguments& a, const Options& options) {
  const auto columns = modulated(sample(a.input, a.positions, options.window), a.mask, options.taps());
  const auto result = product(matrices(a, options), by_group(columns, options.groups), addend(a, options));
  Shape shape = {a.input.sym_size(0), out_channels(a, options)};
  shape.append(a.positions.sym_sizes().begin() + 2, a.positions.sym_sizes().end());
  return result.reshape_symint(shape).contiguous(a.input.suggest_memory_format());
}

// The gradients asked for, in the order of Gradient.
Gradients backward(const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const WithoutAutocast guard;
  Gradients result(kGradients);
  const auto& window = options.window;
  const auto taps = options.taps();
  const auto batch = a.input.sym_size(0);
  SymInt positions = 1;
  for (const auto& size : grad_output.sym_sizes().slice(2)) {
    positions *= size;
  }
  const auto grad =
      grad_output.reshape_symint({batch * options.groups, grad_output.sym_size(1) / options.groups, positions});
  Tensor columns;
  if (needs[kWeight] || needs[kMask]) {
    columns = sample(a.input, a.positions, window);
  }
  if (needs[kInput] || needs[kPositions] || needs[kMask]) {
    auto grad_columns = product(matrices(a, options).transpose(1, 2), grad);
    grad_columns = grad_columns.reshape_symint({batch, a.input.sym_size(1) * taps, positions});
    if (needs[kMask]) {
      result[kMask] = (by_tap(grad_columns, a.mask, taps) * by_tap(columns, a.mask, taps))
                          .sum(2)
                          .reshape_symint(a.mask.sym_sizes());
    }
    if (needs[kInput] || needs[kPositions]) {
      grad_columns = modulated(grad_columns, a.mask, taps);
    }
    if (needs[kPositions]) {
      std::tie(result[kInput], result[kPositions]) = sample_backward(grad_columns, a.input, a.positions, window);
    } else if (needs[kInput]) {
      result[kInput] = splat(grad_columns, a.input.sym_sizes().slice(2), a.positions, window);
    }
    if (needs[kInput]) {
      result[kInput] = result[kInput].contiguous(a.input.suggest_memory_format());
    }
  }
  if (needs[kWeight]) {
    const auto right = by_group(modulated(columns, a.mask, taps), options.groups).transpose(1, 2);
    auto each = product(grad, right);
    if (!weight_per_image(a, options)) {
      const auto& sizes = each.sym_sizes();
      each = each.reshape_symint({batch, options.groups, sizes[1], sizes[2]}).sum(0);
    }
    result[kWeight] = each.reshape_symint(a.weight.sym_sizes());
  }
  return result;
}

}  // namespace ddu::convolution
