// SPDX-License-Identifier: MIT
// The operators that models call. They add a batch axis to unbatched arguments and expand broadcast positions and
// masks; the strict operators do the rest. They are composite, so transforms see only these steps.

#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../checks.h"
#include "../convolution/convolution.h"
#include "../sums/sums.h"
#include "calls.h"
#include "signatures.h"

namespace ddu {

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using convolution::OptionalTensor;
using convolution::value_or_undefined;

Tensor with_batch(const Tensor& tensor) { return tensor.defined() ? tensor.unsqueeze(0) : tensor; }

// Expands positions or a mask over the batch and the output grid.
Tensor over_grid(const Tensor& tensor, const SymParams& params) {
  if (!tensor.defined()) {
    return tensor;
  }
  auto shape = dot_shape(params);
  shape[1] = tensor.sym_size(1);
  return tensor.sym_sizes() == SymIntArrayRef(shape) ? tensor : tensor.expand_symint(shape);
}

// The prefix of the names of operators that take positions from a source.
std::string prefix(Word source) {
  return source == name_of(Source::kRates)  ? "dynamic_dilation_"
      : source == name_of(Source::kOffsets) ? "deform_"
                                            : "affine_";
}

// The sums of windows that models call for `axes` axes.
template <int axes>
struct Sums {
  static constexpr Caller kCaller = {axes, /*model=*/true};

  static std::string name(Word source, const char* stem) { return prefix(source) + stem + std::to_string(axes) + "d"; }

  // The operator's result for `given`, whose leading argument is an image.
  static Tensor contract(
      const char* stem, sums::Slot kept, const sums::Tensors& given, const Options& window, int64_t mask_groups) {
    const sums::Options options(window, mask_groups, sums::only(kept));
    const auto call = sums::check(name(window.source, stem).c_str(), given, options, {}, kCaller);
    const auto& input = given[sums::kInput];
    const bool unbatched = input.dim() == axes + 1;
    auto x = given;
    for (auto& tensor : x) {
      tensor = unbatched ? with_batch(tensor) : tensor;
    }
    for (const auto slot : {sums::kQuery, sums::kMask}) {  // softmax may return float32
      x[slot] = x[slot].defined() ? over_grid(x[slot].to(input.scalar_type()), call.params) : x[slot];
    }
    x[sums::kPositions] = over_grid(x[sums::kPositions], call.params);
    const auto result = sums::contract(x, options, {}, options.wanted)[kept];
    return unbatched ? result.squeeze(0) : result;
  }

  static Tensor aggregate(const Tensor& input, const Tensor& mask, const Tensor& positions, const Options& options) {
    return contract("aggregate", sums::kQuery, {{}, input, mask, {}, {}, positions}, options, 0);
  }

  static Tensor correlated(
      const Tensor& query, const Tensor& input, const Tensor& positions, const Options& options, int64_t mask_groups) {
    TORCH_CHECK(
        mask_groups >= 1, name(options.source, "correlate"), "(): expected mask_groups to be at least 1, but got ",
        mask_groups);
    return contract("correlate", sums::kMask, {query, input, {}, {}, {}, positions}, options, mask_groups);
  }

  static Tensor correlate(
      const Tensor& query,
      const Tensor& input,
      IntArrayRef kernel_size,
      const Tensor& dilation_map,
      IntArrayRef stride,
      IntArrayRef padding,
      IntArrayRef dilation,
      int64_t groups,
      int64_t mask_groups,
      bool aligned,
      Word padding_mode) {
    return correlated(
        query, input, dilation_map,
        {name_of(Source::kRates), kernel_size, stride, padding, dilation, groups, aligned, padding_mode}, mask_groups);
  }

  template <Source source>
  static Tensor correlate_from(
      const Tensor& query,
      const Tensor& input,
      IntArrayRef kernel_size,
      const Tensor& positions,
      IntArrayRef stride,
      IntArrayRef padding,
      IntArrayRef dilation,
      int64_t groups,
      int64_t mask_groups,
      Word padding_mode) {
    return correlated(
        query, input, positions, {name_of(source), kernel_size, stride, padding, dilation, groups, true, padding_mode},
        mask_groups);
  }

  static std::tuple<Tensor, Tensor> max_pool(
      const Tensor& input,
      IntArrayRef kernel_size,
      const Tensor& dilation_map,
      IntArrayRef stride,
      IntArrayRef padding,
      IntArrayRef dilation,
      int64_t groups,
      bool aligned,
      Word padding_mode) {
    const Options options(
        name_of(Source::kRates), kernel_size, stride.empty() ? kernel_size : stride, padding, dilation, groups, aligned,
        padding_mode);
    const auto op = name(options.source, "max_pool");
    const auto params = sums::check_max_pool(op.c_str(), input, dilation_map, options, kCaller);
    if (input.dim() == axes + 1) {
      const auto [values, taps] =
          sums::max_pool(with_batch(input), over_grid(with_batch(dilation_map), params), options);
      return {values.squeeze(0), taps.squeeze(0)};
    }
    return sums::max_pool(input, over_grid(dilation_map, params), options);
  }

  static void implement(torch::Library& m) {
    constexpr const char* kRates = name_of(Source::kRates);
    m.impl(name(kRates, "aggregate").c_str(), TORCH_FN(RatesSchema<&Sums::aggregate>::call));
    m.impl(name(kRates, "correlate").c_str(), TORCH_FN(correlate));
    m.impl(name(kRates, "max_pool").c_str(), TORCH_FN(max_pool));
    implement_from<Source::kOffsets>(m);
    implement_from<Source::kAffine>(m);
  }

  template <Source source>
  static void implement_from(torch::Library& m) {
    using Aggregate = WindowsSchema<source, &Sums::aggregate>;
    m.impl(name(name_of(source), "aggregate").c_str(), TORCH_FN(Aggregate::call));
    m.impl(name(name_of(source), "correlate").c_str(), TORCH_FN(correlate_from<source>));
  }
};

// The operators that models call for `axes` axes.
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

  static std::string unfold_name_from(Word source) { return prefix(source) + name("unfold", false); }

  static Tensor unfold(const Tensor& input, const Tensor& dilation_map, const Options& options) {
    const auto params = check_sample(unfold_name().c_str(), input, dilation_map, options, kCaller);
    return of_batch<&ddu::unfold>(params, input, dilation_map, options);
  }

  static Tensor unfold_from(const Tensor& input, const Tensor& positions, const Options& options) {
    const auto params = check_sample(unfold_name_from(options.source).c_str(), input, positions, options, kCaller);
    // The value, written as an order of 0 for each parameter: AOTInductor's programs turn an empty list into None
    // (torch 2.13).
    Options value = options;
    value.order.assign(params.parameters, 0);
    return of_batch<&ddu::sample>(params, input, positions, value);
  }

  static const std::string& conv_name() {
    static const auto text = name("dynamic_dilation_conv", false);
    return text;
  }

  static const std::string& deform_conv_name() {
    static const auto text = name("deform_conv", false);
    return text;
  }

  static Tensor conv(
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
      Word padding_mode) {
    const convolution::Options options(
        axes, weight, name_of(Source::kRates), stride, padding, dilation, groups, dilation_groups, aligned,
        padding_mode);
    return convolved(
        conv_name(), {input, weight, dilation_map, value_or_undefined(bias), value_or_undefined(mask)}, options);
  }

  static Tensor deform_conv(
      const Tensor& input,
      const Tensor& offset,
      const Tensor& weight,
      const OptionalTensor& bias,
      IntArrayRef stride,
      IntArrayRef padding,
      IntArrayRef dilation,
      const OptionalTensor& mask,
      Word padding_mode) {
    convolution::Options options(
        axes, weight, name_of(Source::kOffsets), stride, padding, dilation, 1, 1, /*aligned=*/true, padding_mode);
    if (weight.defined() && !weight.is_nested() && weight.dim() >= axes + 1) {
      options.groups = whole_parts(input, weight.sym_size(weight.dim() - axes - 1));
    }
    options.window.groups = whole_parts(offset, axes * options.taps());
    return convolved(
        deform_conv_name(), {input, weight, offset, value_or_undefined(bias), value_or_undefined(mask)}, options);
  }

  static const std::string& affine_conv_name() {
    static const auto text = name("affine_conv", false);
    return text;
  }

  static Tensor affine_conv(
      const Tensor& input,
      const Tensor& weight,
      const Tensor& theta,
      const OptionalTensor& bias,
      IntArrayRef stride,
      IntArrayRef padding,
      IntArrayRef dilation,
      int64_t groups,
      int64_t theta_groups,
      const OptionalTensor& mask,
      Word padding_mode) {
    const convolution::Options options(
        axes, weight, name_of(Source::kAffine), stride, padding, dilation, groups, theta_groups, /*aligned=*/true,
        padding_mode);
    return convolved(
        affine_conv_name(), {input, weight, theta, value_or_undefined(bias), value_or_undefined(mask)}, options);
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
    m.impl(conv_name().c_str(), TORCH_FN(Windows::conv));
    m.impl(deform_conv_name().c_str(), TORCH_FN(Windows::deform_conv));
    m.impl(affine_conv_name().c_str(), TORCH_FN(Windows::affine_conv));
    implement_from<Source::kOffsets>(m);
    implement_from<Source::kAffine>(m);
  }

  template <Source source>
  static void implement_from(torch::Library& m) {
    using Unfold = WindowsSchema<source, &Windows::unfold_from>;
    m.impl(unfold_name_from(name_of(source)).c_str(), TORCH_FN(Unfold::call));
  }

 private:
  // How many groups of `part` channels there are, at least one. The checks refuse what doesn't divide evenly.
  static int64_t whole_parts(const Tensor& tensor, const SymInt& part) {
    if (!tensor.defined() || tensor.is_nested() || tensor.dim() <= axes || part <= 0) {
      return 1;
    }
    const auto channels = tensor.sym_size(tensor.dim() - axes - 1);
    return std::max<int64_t>(1, (channels / part).guard_int(__FILE__, __LINE__));
  }

  static Tensor convolved(const std::string& op, convolution::Arguments a, const convolution::Options& options) {
    const auto params = convolution::check(op.c_str(), a, options, kCaller);
    const auto over_images = [&](const Tensor& tensor, bool per_image) {
      if (!per_image || tensor.sym_size(0) == params.batch) {
        return tensor;
      }
      std::vector<SymInt> shape(tensor.sym_sizes().begin(), tensor.sym_sizes().end());
      shape[0] = params.batch;
      return tensor.expand_symint(shape);
    };
    // With a half type the mask may be float32, as softmax returns it; under autocast, autocast casts it.
    if (a.mask.defined() && a.mask.scalar_type() == at::kFloat && at::isReducedFloatingType(a.input.scalar_type())) {
      a.mask = a.mask.to(a.input.scalar_type());
    }
    const bool unbatched = a.input.dim() == axes + 1;
    if (unbatched) {
      a.input = with_batch(a.input);
      a.positions = with_batch(a.positions);
      a.mask = with_batch(a.mask);
    }
    a.weight = over_images(a.weight, convolution::weight_per_image(a, options));
    a.bias = over_images(a.bias, a.bias.defined() && a.bias.dim() == 2);
    a.positions = over_grid(a.positions, params);
    a.mask = over_grid(a.mask, params);
    const auto result = convolution::convolution(a, options);
    return unbatched ? result.squeeze(0) : result;
  }

  template <auto f>
  static Tensor of_batch(
      const SymParams& params, const Tensor& input, const Tensor& positions, const Options& options) {
    if (input.dim() == axes + 1) {
      return f(with_batch(input), over_grid(with_batch(positions), params), options).squeeze(0);
    }
    return f(input, over_grid(positions, params), options);
  }
};

void register_composites(torch::Library& m) {
  Sums<1>::implement(m);
  Sums<2>::implement(m);
  Sums<3>::implement(m);
  Windows<1>::implement(m);
  Windows<2>::implement(m);
  Windows<3>::implement(m);
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeImplicitAutograd, m) { register_composites(m); }

// Under vmap alone nothing else decomposes composite operators; they would be called once per item.
TORCH_LIBRARY_IMPL(ddu, FuncTorchBatchedDecomposition, m) { register_composites(m); }

}  // namespace ddu
