// SPDX-License-Identifier: MIT
// The schemas of all operators. They are public: after the first release, new arguments go at the end, as keywords with
// a default.

#include <ATen/core/enum_tag.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <vector>

namespace {

std::string ints(int axes) { return "int[" + std::to_string(axes) + "]"; }

// The options of a window for `axes` axes. The options added later begin with `later`.
std::string window(int axes, const std::string& positions, const std::string& later) {
  return ints(axes) + " kernel_size, " + positions + ints(axes) + " stride=1, " + ints(axes) + " padding=0, " +
      ints(axes) + " dilation=1, int groups=1, " + later + "str padding_mode=\"zeros\"";
}

}  // namespace

TORCH_LIBRARY(ddu, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  const auto define = [&](const std::string& schema) { m.def(schema.c_str(), tags); };

  // The operators that models call: they accept unbatched arguments and broadcast positions, and use those below.
  for (int axes = 1; axes <= 3; ++axes) {
    const auto suffix = axes == 2 ? "" : std::to_string(axes) + "d";
    const auto rates = window(axes, "Tensor dilation_map, ", "*, bool aligned=True, ");
    define("dynamic_dilation_unfold" + suffix + "(Tensor input, " + rates + ") -> Tensor");
    define(
        "dynamic_dilation_fold" + suffix + "(Tensor columns, SymInt[" + std::to_string(axes) + "] output_size, " +
        rates + ") -> Tensor");
    const auto number = std::to_string(axes);
    define("deform_unfold" + number + "d(Tensor input, " + window(axes, "Tensor offset, ", "*, ") + ") -> Tensor");
    define("affine_unfold" + number + "d(Tensor input, " + window(axes, "Tensor theta, ", "*, ") + ") -> Tensor");
    const auto steps = ints(axes) + " stride=1, " + ints(axes) + " padding=0, " + ints(axes) + " dilation=1, ";
    define(
        "dynamic_dilation_conv" + number + "d(Tensor input, Tensor weight, Tensor dilation_map, Tensor? bias=None, " +
        steps +
        "int groups=1, *, int dilation_groups=1, Tensor? mask=None, bool aligned=True, "
        "str padding_mode=\"zeros\") -> Tensor");
    define(
        "deform_conv" + number + "d(Tensor input, Tensor offset, Tensor weight, Tensor? bias=None, " + steps +
        "Tensor? mask=None, *, str padding_mode=\"zeros\") -> Tensor");
    define(
        "affine_conv" + number + "d(Tensor input, Tensor weight, Tensor theta, Tensor? bias=None, " + steps +
        "int groups=1, *, int theta_groups=1, Tensor? mask=None, str padding_mode=\"zeros\") -> Tensor");
  }

  // The operators: strictly batched, and for any number of axes, which the rank of the positions determines.
  const auto rates = window(1, "Tensor dilation_map, ", "bool aligned=True, ");
  define("unfold(Tensor input, " + rates + ") -> Tensor");
  define("fold(Tensor columns, SymInt[] output_size, " + rates + ") -> Tensor");
  define(
      "unfold_backward(Tensor grad_output, Tensor input, int[1] kernel_size, Tensor dilation_map, int[1] stride, "
      "int[1] padding, int[1] dilation, int groups, bool aligned, str padding_mode) -> "
      "(Tensor grad_input, Tensor grad_dilation_map)");

  // The convolution. convolution_backward returns an empty tensor for each gradient that output_mask leaves out.
  const std::string convolution =
      "str source, int[1] stride, int[1] padding, int[1] dilation, int groups, int dilation_groups, bool aligned, "
      "str padding_mode";
  define(
      "convolution(Tensor input, Tensor weight, Tensor positions, Tensor? bias, Tensor? mask, " + convolution +
      ") -> Tensor");
  define(
      "convolution_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor positions, Tensor? mask, " +
      convolution +
      ", bool[4] output_mask) -> "
      "(Tensor grad_input, Tensor grad_weight, Tensor grad_positions, Tensor grad_mask)");

  // The family that all their derivatives are built from, for every source of positions (math/positions.h). `order` is
  // a multi-index with one entry per parameter of the positions: the order of the derivative with respect to each. If
  // it is empty, the value itself is computed, and with rates sample is unfold and splat is fold. sample_backward
  // combines splat and the gradient with respect to every parameter.
  const auto family = "Tensor positions, str source, " + window(1, "", "bool aligned=True, ") + ", int[] order=[]";
  define("sample(Tensor input, " + family + ") -> Tensor");
  define("splat(Tensor columns, SymInt[] output_size, " + family + ") -> Tensor");
  define("dot(Tensor columns, Tensor input, " + family + ") -> Tensor");
  define(
      "sample_backward(Tensor grad_output, Tensor input, " + family +
      ") -> (Tensor grad_input, Tensor grad_positions)");

  // Sums of windows, as models call them.
  for (int axes = 1; axes <= 3; ++axes) {
    const auto number = std::to_string(axes) + "d";
    const std::vector<std::array<std::string, 3>> sources = {
        {"dynamic_dilation_", "Tensor dilation_map, ", "bool aligned=True, "},
        {"deform_", "Tensor offset, ", ""},
        {"affine_", "Tensor theta, ", ""}};
    for (const auto& [stem, positions, aligned] : sources) {
      define(
          stem + "aggregate" + number + "(Tensor input, Tensor mask, " + window(axes, positions, "*, " + aligned) +
          ") -> Tensor");
      define(
          stem + "correlate" + number + "(Tensor query, Tensor input, " +
          window(axes, positions, "*, int mask_groups=1, " + aligned) + ") -> Tensor");
    }
    define(
        "dynamic_dilation_max_pool" + number + "(Tensor input, " + ints(axes) + " kernel_size, Tensor dilation_map, " +
        ints(axes) + " stride=[], " + ints(axes) + " padding=0, " + ints(axes) +
        " dilation=1, int groups=1, *, bool aligned=True, str padding_mode=\"ignore\") -> (Tensor values, Tensor "
        "taps)");
  }

  // Sums of windows (sums/sums.h). sums_backward returns an empty tensor for each gradient that output_mask leaves out.
  const auto sums = "Tensor positions, str source, " + window(1, "", "bool aligned=True, ");
  define("aggregate(Tensor input, Tensor? mask, Tensor? weight, Tensor? taps, " + sums + ") -> Tensor");
  define("correlate(Tensor query, Tensor input, " + sums + ", int mask_groups=1) -> Tensor");
  define(
      "scatter(Tensor query, Tensor? mask, Tensor? weight, Tensor? taps, SymInt[] output_size, " + sums +
      ") -> Tensor");
  define(
      "sums_backward(Tensor query, Tensor input, Tensor? mask, Tensor? weight, Tensor? taps, Tensor positions, "
      "str source, int[1] kernel_size, int[1] stride, int[1] padding, int[1] dilation, int groups, bool aligned, "
      "str padding_mode, bool[5] output_mask) -> (Tensor grad_query, Tensor grad_input, Tensor grad_mask, "
      "Tensor grad_weight, Tensor grad_positions)");
  define("max_pool(Tensor input, " + sums + ") -> (Tensor values, Tensor taps)");

  // A kernel with learnable spacings, its convolution without building the kernel, and positions moved to the kernel's
  // edge where they lie outside. The kernel's backward returns an empty tensor for each gradient that output_mask
  // leaves out.
  define("dcls_sparse_sum(Tensor input, Tensor factors, Tensor shifts, SymInt[] output_size) -> Tensor");
  define("dcls_sparse_dot(Tensor left, Tensor input, Tensor shifts) -> Tensor");
  define("dcls_inside(Tensor positions, int[1] kernel_size) -> Tensor");
  define(
      "dcls_kernel(Tensor weight, Tensor positions, int[1] kernel_size, Tensor? sigma=None, *, str version=\"v1\") "
      "-> Tensor");
  define(
      "dcls_kernel_backward(Tensor grad_output, Tensor weight, Tensor positions, int[1] kernel_size, Tensor? sigma, "
      "str version, bool[3] output_mask) -> (Tensor grad_weight, Tensor grad_positions, Tensor grad_sigma)");
}
