// SPDX-License-Identifier: MIT
// The C++ interface of ddu_ops: unfold, fold and convolution with dynamic dilation, and windows and convolutions with
// offsets or affine maps.
//
// The functions are the operators torch.ops.ddu.dynamic_dilation_*, deform_* and affine_* under shorter names, with the
// same schemas, checks and errors (c10::Error). They go through the dispatcher, so they also have the same autograd,
// autocast and devices. The documentation of the Python functions applies word for word. Sizes, in elements, for N
// axes, slowest first:
//
//   input         [B, C, *size], or [C, *size] if every other tensor lacks B as well
//   dilation_map  [B, G, *out], one rate for all axes, or [B, N G, *out], one rate per axis; a batch of 1 is broadcast,
//                 and so is an output grid whose sizes are all 1
//   offset        [B, G K N, *out], a displacement per tap (there are K) and axis; broadcast likewise
//   theta         [B, G N (N + 1), *out], for each axis a matrix row and a shift in pixels; broadcast likewise
//   columns       [B, C K, L], in the order of torch::nn::functional::unfold; L is the product of out
//
// with out = (size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1, rounded down, on every axis. Where
// Python takes one int or one per axis, so does C++: 3 or {3, 5}.
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

// Sums of windows for N = 1, 2, 3 axes, without columns. The windows are those of unfold, deform_unfold and
// affine_unfold below.
//
// aggregate: the sum over the taps, each multiplied by its own factor: mask [B, M * taps, *out], for M channel groups.
//
// correlate: every window times a query [B, C, *out], summed over each of mask_groups channel groups.
//
// max_pool: the largest sample of every window, and its tap. The stride defaults to the size of the window. With
// padding_mode "ignore", taps outside the image don't count.
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
// unfold: like F.unfold, but each output position has a dilation rate of its own. Returns columns. Channel c reads the
// map of group c / (C / groups). If `aligned`, windows are centred where F.unfold's are, otherwise on the first tap of
// F.unfold's. `padding_mode` says what lies outside the image: "zeros", "border" or "reflection".
//
// fold: the adjoint of unfold. Sums columns into an image of output_size: [B, C, *size], or without B.
//
// deform_unfold: the windows of a deformable convolution: an offset moves each tap.
//
// affine_unfold: windows that are each rotated, stretched and moved by an affine map.
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
// conv: the convolution with a dilation map. weight [O, C / groups, *kernel], or one per image, [B, O, C / groups,
// *kernel]; bias [O], or with one weight per image also [B, O]; mask [B, M K, *out], which multiplies the taps, for any
// number M of channel groups. The result is [B, O, *out].
//
// affine_conv: with affine maps instead, for theta_groups channel groups.
//
// deform_conv: with offsets instead, in the argument order of torchvision's deform_conv2d. The shapes of weight and
// offset determine the numbers of groups.
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
