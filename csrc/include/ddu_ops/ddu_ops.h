// SPDX-License-Identifier: MIT
// ddu_ops from C++: dynamic dilation unfold, fold and convolution, and windows and convolutions from offsets and affine
// maps.
//
// The functions are the operators torch.ops.ddu.dynamic_dilation_*, deform_* and affine_* under shorter names: the same
// schemas, checks and errors (c10::Error), and, since they go through the dispatcher, the same autograd, autocast and
// devices. The documentation of the Python functions holds for them word by word. Sizes, in elements, of N axes,
// slowest first:
//
//   input         [B, C, *size], or [C, *size] with every other tensor without B as well
//   dilation_map  [B, G, *out], one rate for all axes, or [B, N G, *out], a rate per axis; a batch of 1 is broadcast,
//                 and so are axes of the output that are all 1
//   offset        [B, G K N, *out], a displacement for each of the K taps and each axis; broadcast alike
//   theta         [B, G N (N + 1), *out], for each axis the row of a matrix and a shift in pixels; broadcast alike
//   columns       [B, C K, L], in the order of torch::nn::functional::unfold, L the product of out
//
// with out = (size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1, rounded down, on every axis. Where
// Python takes an int or one for each axis, so do they: 3 or {3, 5}.
//
//   auto x = torch::randn({1, 8, 16, 16});
//   auto rate = torch::ones({1, 1, 16, 16}).requires_grad_();
//   ddu::unfold(x, /*kernel_size=*/3, rate, /*stride=*/1, /*padding=*/1).square().sum().backward();
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/expanding_array.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>

#define DDU_API __attribute__((visibility("default")))

namespace ddu {

// The sums of windows for N = 1, 2, 3 axes, without columns. Their windows are those of unfold, deform_unfold and
// affine_unfold below.
//
// aggregate: every tap times a factor of its own, added up: mask [B, M * taps, *out], for M groups of channels.
//
// correlate: every window times a query [B, C, *out], added up over each of mask_groups groups of channels.
//
// max_pool: the largest sample of every window, and its tap. Without a stride it is the size of the window. With
// padding_mode "ignore" taps outside the image do not count.
#define DDU_SUMS(N) \
  DDU_API at::Tensor aggregate##N##d( \
      const at::Tensor& input, const at::Tensor& mask, torch::ExpandingArray<N> kernel_size, \
      const at::Tensor& dilation_map, torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, bool aligned = true, \
      std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor correlate##N##d( \
      const at::Tensor& query, const at::Tensor& input, torch::ExpandingArray<N> kernel_size, \
      const at::Tensor& dilation_map, torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, int64_t mask_groups = 1, bool aligned = true, \
      std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor deform_aggregate##N##d( \
      const at::Tensor& input, const at::Tensor& mask, torch::ExpandingArray<N> kernel_size, const at::Tensor& offset, \
      torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor deform_correlate##N##d( \
      const at::Tensor& query, const at::Tensor& input, torch::ExpandingArray<N> kernel_size, \
      const at::Tensor& offset, torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, int64_t mask_groups = 1, \
      std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor affine_aggregate##N##d( \
      const at::Tensor& input, const at::Tensor& mask, torch::ExpandingArray<N> kernel_size, const at::Tensor& theta, \
      torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor affine_correlate##N##d( \
      const at::Tensor& query, const at::Tensor& input, torch::ExpandingArray<N> kernel_size, const at::Tensor& theta, \
      torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, int64_t mask_groups = 1, \
      std::string_view padding_mode = "zeros"); \
  DDU_API std::tuple<at::Tensor, at::Tensor> max_pool##N##d( \
      const at::Tensor& input, torch::ExpandingArray<N> kernel_size, const at::Tensor& dilation_map, \
      std::optional<torch::ExpandingArray<N>> stride = std::nullopt, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, bool aligned = true, \
      std::string_view padding_mode = "ignore");

DDU_SUMS(1)
DDU_SUMS(2)
DDU_SUMS(3)

#undef DDU_SUMS

// For N = 1, 2, 3 axes:
//
// unfold: F.unfold in which every output position reads its own dilation rate: columns. Channel c reads the map of
// group c / (C / groups). `aligned` centres a window where F.unfold centres its own; without, on F.unfold's first tap.
// `padding_mode` says what lies outside: "zeros", "border" or "reflection".
//
// fold: its adjoint, which sums columns into an image of output_size: [B, C, *size], or without B.
//
// deform_unfold: the windows of a deformable convolution, in which every tap is moved by an offset of its own.
//
// affine_unfold: windows that are turned, stretched and moved by an affine map each.
#define DDU_WINDOWS(N, unfold, fold, deform_unfold, affine_unfold) \
  DDU_API at::Tensor unfold( \
      const at::Tensor& input, torch::ExpandingArray<N> kernel_size, const at::Tensor& dilation_map, \
      torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, bool aligned = true, \
      std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor fold( \
      const at::Tensor& columns, torch::ExpandingArray<N> output_size, torch::ExpandingArray<N> kernel_size, \
      const at::Tensor& dilation_map, torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, bool aligned = true, \
      std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor deform_unfold( \
      const at::Tensor& input, torch::ExpandingArray<N> kernel_size, const at::Tensor& offset, \
      torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor affine_unfold( \
      const at::Tensor& input, torch::ExpandingArray<N> kernel_size, const at::Tensor& theta, \
      torch::ExpandingArray<N> stride = 1, torch::ExpandingArray<N> padding = 0, \
      torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, std::string_view padding_mode = "zeros");

DDU_WINDOWS(1, unfold1d, fold1d, deform_unfold1d, affine_unfold1d)
DDU_WINDOWS(2, unfold, fold, deform_unfold2d, affine_unfold2d)
DDU_WINDOWS(3, unfold3d, fold3d, deform_unfold3d, affine_unfold3d)

#undef DDU_WINDOWS

// For N = 1, 2, 3 axes:
//
// conv: the convolution with a dilation map: weight [O, C / groups, *kernel], or one per image, [B, O, C / groups,
// *kernel]; bias [O], or then also [B, O]; mask [B, M K, *out], which the taps are multiplied with, for any number M of
// groups of channels. The result is [B, O, *out].
//
// affine_conv: the same with affine maps, for theta_groups groups of channels.
//
// deform_conv: the same with offsets, in the order of torchvision's deform_conv2d. The shapes of weight and offset tell
// the groups.
#define DDU_CONVOLUTIONS(N, conv, deform_conv, affine_conv) \
  DDU_API at::Tensor conv( \
      const at::Tensor& input, const at::Tensor& weight, const at::Tensor& dilation_map, \
      const std::optional<at::Tensor>& bias = std::nullopt, torch::ExpandingArray<N> stride = 1, \
      torch::ExpandingArray<N> padding = 0, torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, \
      int64_t dilation_groups = 1, const std::optional<at::Tensor>& mask = std::nullopt, bool aligned = true, \
      std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor deform_conv( \
      const at::Tensor& input, const at::Tensor& offset, const at::Tensor& weight, \
      const std::optional<at::Tensor>& bias = std::nullopt, torch::ExpandingArray<N> stride = 1, \
      torch::ExpandingArray<N> padding = 0, torch::ExpandingArray<N> dilation = 1, \
      const std::optional<at::Tensor>& mask = std::nullopt, std::string_view padding_mode = "zeros"); \
  DDU_API at::Tensor affine_conv( \
      const at::Tensor& input, const at::Tensor& weight, const at::Tensor& theta, \
      const std::optional<at::Tensor>& bias = std::nullopt, torch::ExpandingArray<N> stride = 1, \
      torch::ExpandingArray<N> padding = 0, torch::ExpandingArray<N> dilation = 1, int64_t groups = 1, \
      int64_t theta_groups = 1, const std::optional<at::Tensor>& mask = std::nullopt, \
      std::string_view padding_mode = "zeros");

DDU_CONVOLUTIONS(1, conv1d, deform_conv1d, affine_conv1d)
DDU_CONVOLUTIONS(2, conv2d, deform_conv2d, affine_conv2d)
DDU_CONVOLUTIONS(3, conv3d, deform_conv3d, affine_conv3d)

#undef DDU_CONVOLUTIONS

}  // namespace ddu
