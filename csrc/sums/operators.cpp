// SPDX-License-Identifier: MIT
// The sums of windows: checks, shapes, and which operator computes what.

#include <ATen/ATen.h>

#include "../dispatch/signatures.h"
#include "sums.h"

namespace ddu::sums {

using at::Tensor;
using c10::SymIntArrayRef;

// ---- checks

Call check(const char* op, const Tensors& x, const Options& options, SymIntArrayRef image_size, const Caller& caller) {
  int64_t mask_groups = options.mask_groups;
  auto params = check_sums(
      op, x[kQuery], x[kInput], x[kMask], x[kWeight], x[kTaps], x[kPositions], image_size, options.window, mask_groups,
      caller);
  TORCH_CHECK(
      !x[kTaps].defined() || !(x[kMask].defined() || x[kWeight].defined()), op,
      "(): expected mask and weight to be None beside taps, but got a tensor");
  for (const auto& [slot, argument] : {std::pair(kMask, "mask"), std::pair(kWeight, "weight")}) {
    TORCH_CHECK(
        !options.wanted[slot] || x[slot].defined() || options.mask_groups != 0, op, "(): expected ", argument,
        " to be a tensor, because output_mask asks for its gradient, but got None");
  }
  return {x, std::move(params), mask_groups, options.wanted};
}

ddu::Options without_ignore(const ddu::Options& options) {
  auto result = options;
  if (result.padding_mode == kIgnore) {
    result.padding_mode = name_of(PaddingMode::kZeros);
  }
  return result;
}

SymParams check_max_pool(
    const char* op, const Tensor& input, const Tensor& positions, const ddu::Options& options, const Caller& caller) {
  return check_sample(op, input, positions, without_ignore(options), caller);
}

// ---- results

at::MemoryFormat format_of(const Tensor& image) {
  return image.dim() == 4 || image.dim() == 5 ? image.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

namespace {

Tensor empty(SymIntArrayRef sizes, const Tensor& like, at::MemoryFormat format) {
  return at::empty_symint(sizes, like.options(), format);
}

}  // namespace

Tensors allocate(const Call& call) {
  const auto& [x, params, mask_groups, wanted] = call;
  const auto& image = x[kInput].defined() ? x[kInput] : x[kQuery];
  const auto format = format_of(image);
  Tensors results(kSlots);
  if (wanted[kQuery]) {
    results[kQuery] = empty(grid_shape(params, params.channels), image, format);
  }
  if (wanted[kInput]) {
    results[kInput] = empty(input_shape(params), image, format);
  }
  if (wanted[kMask]) {
    const int64_t taps = params.axis[0].kernel * params.axis[1].kernel * params.axis[2].kernel;
    results[kMask] = empty(grid_shape(params, mask_groups * taps), image, format);
  }
  for (const auto slot : {kWeight, kPositions}) {
    if (wanted[slot]) {
      results[slot] = empty(x[slot].sym_sizes(), x[slot], at::MemoryFormat::Contiguous);
    }
  }
  return results;
}

std::tuple<Tensor, Tensor> allocate_max_pool(const SymParams& params, const Tensor& input) {
  const auto shape = grid_shape(params, params.channels);
  const auto format = format_of(input);
  return {empty(shape, input, format), at::empty_symint(shape, input.options().dtype(at::kLong), format)};
}

// ---- the operators through the dispatcher

namespace {

struct None {
  static void contract(const Call&, const Tensors&) {}
  static void max_pool(const SymParams&, bool, const Tensor&, const Tensor&, const Tensor&, const Tensor&) {}
};

Tensors unused(const char*, const Tensors&, const Options&, SymIntArrayRef) { return {}; }
std::tuple<Tensor, Tensor> unused_pool(const Tensor&, const Tensor&, const ddu::Options&) { return {}; }

}  // namespace

Tensors contract(const Tensors& x, const Options& options, SymIntArrayRef image_size, const Wanted& wanted) {
  static const auto aggregate = find_operator<decltype(aggregate_schema<&unused>)>("ddu::aggregate");
  static const auto correlate = find_operator<decltype(correlate_schema<&unused>)>("ddu::correlate");
  static const auto scatter = find_operator<decltype(scatter_schema<&unused>)>("ddu::scatter");
  static const auto backward = find_operator<decltype(sums_backward_schema<&unused>)>("ddu::sums_backward");
  const auto& w = options.window;
  const auto mask = as_optional(x[kMask]);
  const auto weight = as_optional(x[kWeight]);
  const auto taps = as_optional(x[kTaps]);
  Tensors results(kSlots);
  if (wanted == only(kQuery)) {
    results[kQuery] = aggregate.call(
        x[kInput], mask, weight, taps, x[kPositions], w.source, w.kernel_size, w.stride, w.padding, w.dilation,
        w.groups, w.aligned, w.padding_mode);
  } else if (wanted == only(kMask) && !weight && !taps) {
    results[kMask] = correlate.call(
        x[kQuery], x[kInput], x[kPositions], w.source, w.kernel_size, w.stride, w.padding, w.dilation, w.groups,
        w.aligned, w.padding_mode, options.mask_groups);
  } else if (wanted == only(kInput)) {
    results[kInput] = scatter.call(
        x[kQuery], mask, weight, taps, image_size, x[kPositions], w.source, w.kernel_size, w.stride, w.padding,
        w.dilation, w.groups, w.aligned, w.padding_mode);
  } else if (any(wanted)) {
    auto [query, input, of_mask, of_weight, positions] = backward.call(
        x[kQuery], x[kInput], mask, weight, taps, x[kPositions], w.source, w.kernel_size, w.stride, w.padding,
        w.dilation, w.groups, w.aligned, w.padding_mode, to_schema(wanted));
    const Tensors all = {query, input, of_mask, of_weight, Tensor(), positions};
    for (size_t i = 0; i < kSlots; ++i) {
      results[i] = wanted[i] ? all[i] : Tensor();
    }
  }
  return results;
}

std::tuple<Tensor, Tensor> max_pool(const Tensor& input, const Tensor& positions, const ddu::Options& o) {
  static const auto op = find_operator<decltype(max_pool_schema<&unused_pool>)>("ddu::max_pool");
  return op.call(
      input, positions, o.source, o.kernel_size, o.stride, o.padding, o.dilation, o.groups, o.aligned, o.padding_mode);
}

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_operators<None>(m); }

// Registered only to be refused: see meta.cpp.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_operators<None>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_operators<None>(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_operators<None>(m); }

}  // namespace ddu::sums
