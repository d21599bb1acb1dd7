// SPDX-License-Identifier: MIT
// ddu_ops from C++: dynamic dilation unfold, fold and convolution.
//
// The functions are the operators torch.ops.ddu.dynamic_dilation_* under shorter names: the same schemas, checks and
// errors (c10::Error), and, since they go through the dispatcher, the same autograd, autocast and devices. The
// documentation of the Python functions holds for them word by word. Sizes, in elements:
//
//   input         [B, C, H, W], or [C, H, W] with every other tensor without B as well
//   dilation_map  [B, G, H_out, W_out], one rate for both axes, or [B, 2 G, H_out, W_out], a rate per axis, height
//                 first; a batch of 1 is broadcast
//   columns       [B, C * kH * kW, H_out * W_out], in the order of torch::nn::functional::unfold
//
// with H_out = (H + 2 * padding - dilation * (kH - 1) - 1) / stride + 1, rounded down, and W_out alike. Where Python
// takes an int or a pair (height, width), so do they: 3 or {3, 5}.
//
//   auto x = torch::randn({1, 8, 16, 16});
//   auto rate = torch::ones({1, 1, 16, 16}).requires_grad_();
//   ddu::unfold(x, /*kernel_size=*/3, rate, /*stride=*/1, /*padding=*/1).square().sum().backward();
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/expanding_array.h>

#include <cstdint>
#include <optional>

#define DDU_API __attribute__((visibility("default")))

namespace ddu {

using IntOrPair = torch::ExpandingArray<2>;

// F.unfold in which every output position reads its own dilation rate: columns. Channel c reads the map of group
// c / (C / groups). `aligned` centres a window where F.unfold centres its own; without, on F.unfold's first tap.
DDU_API at::Tensor unfold(
    const at::Tensor& input,
    IntOrPair kernel_size,
    const at::Tensor& dilation_map,
    IntOrPair stride = 1,
    IntOrPair padding = 0,
    IntOrPair dilation = 1,
    int64_t groups = 1,
    bool aligned = true);

// Its adjoint, which sums columns into an image of output_size: [B, C, H, W], or without B.
DDU_API at::Tensor fold(
    const at::Tensor& columns,
    IntOrPair output_size,
    IntOrPair kernel_size,
    const at::Tensor& dilation_map,
    IntOrPair stride = 1,
    IntOrPair padding = 0,
    IntOrPair dilation = 1,
    int64_t groups = 1,
    bool aligned = true);

// F.conv2d with a dilation map: weight [O, C / groups, kH, kW], bias [O], mask [B, dilation_groups * kH * kW, H_out,
// W_out], which the taps are multiplied with; the result is [B, O, H_out, W_out]. The columns are temporary, of at most
// workspace_limit bytes at a time.
DDU_API at::Tensor conv2d(
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& dilation_map,
    const std::optional<at::Tensor>& bias = std::nullopt,
    IntOrPair stride = 1,
    IntOrPair padding = 0,
    IntOrPair dilation = 1,
    int64_t groups = 1,
    int64_t dilation_groups = 1,
    const std::optional<at::Tensor>& mask = std::nullopt,
    bool aligned = true,
    int64_t workspace_limit = int64_t(1) << 28);

}  // namespace ddu
