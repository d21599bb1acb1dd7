// SPDX-License-Identifier: MIT
// What models call: unbatched arguments get a batch, positions and a mask that are broadcast are expanded, and the
// operators do the rest. Composite, so every transform sees only these steps.

#include <torch/library.h>

#include <string>

#include "../checks.h"
#include "../convolution/convolution.h"
#include "calls.h"
#include "signatures.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using convolution::OptionalTensor;

Tensor with_batch(const Tensor& tensor) { return tensor.defined() ? tensor.unsqueeze(0) : tensor; }

// Positions or a mask, over the batch and the output grid.
Tensor over_grid(const Tensor& tensor, const SymParams& params) {
  if (!tensor.defined()) {
    return tensor;
  }
  auto shape = dot_shape(params);
  shape[1] = tensor.sym_size(1);
  return tensor.sym_sizes() == SymIntArrayRef(shape) ? tensor : tensor.expand_symint(shape);
}

// What models call for a problem of `axes` axes.
template <int axes>
struct Windows {
  static constexpr Caller kCaller = {axes, /*model=*/true};

  static std::string name(const char* stem, bool two_is_plain) {
    return axes == 2 && two_is_plain ? stem : stem + std::to_string(axes) + "d";
  }

  static const std::string& unfold_name() {
    static const auto text = name("dynamic_dilation_unfold", true);
    return text;
  }

  static const std::string& fold_name() {
    static const auto text = name("dynamic_dilation_fold", true);
    return text;
  }

  static const std::string& deform_unfold_name() {
    static const auto text = name("deform_unfold", false);
    return text;
  }

  static Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Options& options) {
    const auto params = check_sample(unfold_name().c_str(), input, dilation_map, options, kCaller);
    return of_batch<&ddu::unfold>(params, input, dilation_map, options);
  }

  static Tensor deform_unfold(const Tensor& input, const Tensor& offset, const Options& options) {
    const auto params = check_sample(deform_unfold_name().c_str(), input, offset, options, kCaller);
    // The value, by an order for each parameter: of an empty list AOTInductor's programs make None (torch 2.13).
    Options value = options;
    value.order.assign(params.parameters, 0);
    return of_batch<&ddu::sample>(params, input, offset, value);
  }

  static Tensor fold(
      const Tensor& columns, SymIntArrayRef output_size, const Tensor& dilation_map, const Options& options) {
    const auto params = check_splat(fold_name().c_str(), columns, output_size, dilation_map, options, kCaller);
    if (columns.dim() == 2) {
      return ddu::fold(with_batch(columns), output_size, over_grid(with_batch(dilation_map), params), options)
          .squeeze(0);
    }
    return ddu::fold(columns, output_size, over_grid(dilation_map, params), options);
  }

  static void implement(torch::Library& m) {
    m.impl(unfold_name().c_str(), TORCH_FN(RatesSchema<&Windows::unfold>::call));
    m.impl(fold_name().c_str(), TORCH_FN(RatesSchema<&Windows::fold>::call));
    m.impl(deform_unfold_name().c_str(), TORCH_FN(OffsetsSchema<&Windows::deform_unfold>::call));
  }

 private:
  template <auto f>
  static Tensor of_batch(
      const SymParams& params, const Tensor& input, const Tensor& positions, const Options& options) {
    if (input.dim() == axes + 1) {
      return f(with_batch(input), over_grid(with_batch(positions), params), options).squeeze(0);
    }
    return f(input, over_grid(positions, params), options);
  }
};

Tensor dynamic_dilation_conv2d(
    const Tensor& input,
    const Tensor& weight,
    const Tensor& dilation_map,
    const OptionalTensor& bias,
    IntArrayRef stride,
    IntArrayRef padding,
    IntArrayRef dilation,
    int64_t groups,
    int64_t dilation_groups,
    const OptionalTensor& mask,
    bool aligned,
    Word padding_mode,
    int64_t workspace_limit) {
  convolution::Arguments a = {
      input, weight, dilation_map, convolution::value_or_undefined(bias), convolution::value_or_undefined(mask)};
  const convolution::Options options(
      weight, stride, padding, dilation, groups, dilation_groups, aligned, padding_mode, workspace_limit);
  const auto params = convolution::check("dynamic_dilation_conv2d", a, options, {2, /*model=*/true});
  if (input.dim() == 3) {
    a.input = with_batch(input);
    a.dilation_map = over_grid(with_batch(dilation_map), params);
    a.mask = with_batch(a.mask);
    return convolution::conv2d(a, options).squeeze(0);
  }
  a.dilation_map = over_grid(dilation_map, params);
  a.mask = over_grid(a.mask, params);
  return convolution::conv2d(a, options);
}

void register_composites(torch::Library& m) {
  Windows<1>::implement(m);
  Windows<2>::implement(m);
  Windows<3>::implement(m);
  m.impl("dynamic_dilation_conv2d", TORCH_FN(dynamic_dilation_conv2d));
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeImplicitAutograd, m) { register_composites(m); }

// Under vmap alone nothing else takes a composite operator apart, and it would be called once for every item.
TORCH_LIBRARY_IMPL(ddu, FuncTorchBatchedDecomposition, m) { register_composites(m); }

}  // namespace ddu
