// SPDX-License-Identifier: MIT
// The convolution's operators: their checks, their shapes, and how they keep to workspace_limit.

#include "convolution.h"

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <algorithm>

#include "../dispatch/signatures.h"

namespace ddu::convolution {

using at::Tensor;

// ---- checks

SymParams check(const char* op, const Arguments& a, const Options& options, const Caller& caller) {
  return check_convolution(
      op, a.input, a.weight, a.dilation_map, a.bias, a.mask, options.window, options.groups, options.workspace_limit,
      caller);
}

SymParams check_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto* const op = "conv2d_backward";
  const auto params = check(op, a, options);
  check_convolution_gradient(op, grad_output, a.input, a.weight, params, a.mask.defined(), needs[kMask]);
  return params;
}

namespace {

// ---- in chunks of the batch

// How many images at a time: as many as keep the temporary memory below the limit, and at least one. `copies` is the
// number of column-sized tensors that live at once.
int64_t chunk_size(const SymParams& sym, const Arguments& a, const Options& options, int64_t copies) {
  const auto params = concrete(sym);
  const auto taps = static_cast<double>(params.axis[1].kernel) * static_cast<double>(params.axis[2].kernel);
  const auto columns = static_cast<double>(params.channels) * taps * static_cast<double>(params.axis[1].out_size) *
      static_cast<double>(params.axis[2].out_size);
  const auto bytes = (columns * static_cast<double>(copies) + static_cast<double>(a.weight.numel())) *
      static_cast<double>(a.input.element_size());
  const auto fit = static_cast<double>(options.workspace_limit) / std::max(bytes, 1.0);
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(fit, static_cast<double>(params.batch))));
}

Arguments narrowed(const Arguments& a, int64_t start, int64_t size) {
  return {
      a.input.narrow(0, start, size), a.weight, a.dilation_map.narrow(0, start, size), a.bias,
      a.mask.defined() ? a.mask.narrow(0, start, size) : Tensor()};
}

// A program that is only traced has no memory to bound and no values to look at: it is the mathematics in one piece.
bool is_traced(const Tensor& tensor) { return tensor.unsafeGetTensorImpl()->is_python_dispatch(); }

// Whether every rate is one. Looks no further than the first that is not.
bool all_ones(const Tensor& dilation_map) {
  const auto map = dilation_map.contiguous();
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, map.scalar_type(), "conv2d", [&] {
    const auto* rates = map.const_data_ptr<scalar_t>();
    return std::all_of(rates, rates + map.numel(), [](scalar_t rate) { return rate == scalar_t(1); });
  });
}

Tensor forward_in_chunks(const Arguments& a, const Options& options) {
  const auto sym = check("conv2d", a, options);
  if (is_traced(a.input)) {
    return forward(a, options);
  }
  const auto& window = options.window;
  // The windows are a plain convolution's. Torch's own adds the products up in the order that it always does, so a
  // layer that begins there begins with the bits of Conv2d. On a GPU to look would be to wait for it.
  if (a.input.is_cpu() && a.input.numel() != 0 && a.weight.numel() != 0 && !a.mask.defined() && window.aligned &&
      window.padding_mode == name_of(PaddingMode::kZeros) && all_ones(a.dilation_map)) {
    return at::conv2d(
               a.input, a.weight, as_optional(a.bias), window.stride, window.padding, window.dilation, options.groups)
        .contiguous();
  }
  const auto batch = a.input.size(0);
  const auto chunk = chunk_size(sym, a, options, /*copies=*/a.mask.defined() ? 2 : 1);
  if (chunk >= batch) {
    return forward(a, options);
  }
  auto result = at::empty({batch, a.weight.size(0), a.dilation_map.size(2), a.dilation_map.size(3)}, a.input.options());
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto size = std::min(chunk, batch - start);
    result.narrow(0, start, size).copy_(forward(narrowed(a, start, size), options));
  }
  return result;
}

Gradients backward_in_chunks(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto sym = check_backward(grad_output, a, options, needs);
  if (is_traced(a.input)) {
    return backward(grad_output, a, options, needs);
  }
  const auto batch = a.input.size(0);
  const int64_t copies = (needs[kWeight] || needs[kMask] ? 1 : 0) +
      (needs[kInput] || needs[kMap] || needs[kMask] ? 1 : 0) + (a.mask.defined() ? 1 : 0);
  const auto chunk = chunk_size(sym, a, options, copies);
  if (chunk >= batch) {
    return backward(grad_output, a, options, needs);
  }
  const auto sum_type = at::toOpMathType(a.weight.scalar_type());
  const auto empty_like = [](bool needed, const Tensor& like) {
    return needed ? at::empty(like.sizes(), like.options()) : Tensor();
  };
  Gradients result(kGradients);
  result[kInput] = empty_like(needs[kInput], a.input);
  result[kMap] = empty_like(needs[kMap], a.dilation_map);
  result[kMask] = empty_like(needs[kMask], a.mask);
  if (needs[kWeight]) {
    result[kWeight] = at::zeros(a.weight.sizes(), a.weight.options().dtype(sum_type));
  }
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto size = std::min(chunk, batch - start);
    const auto part = backward(grad_output.narrow(0, start, size), narrowed(a, start, size), options, needs);
    for (const auto i : {kInput, kMap, kMask}) {
      if (needs[i]) {
        result[i].narrow(0, start, size).copy_(part[i]);
      }
    }
    if (needs[kWeight]) {
      result[kWeight].add_(part[kWeight]);
    }
  }
  if (needs[kWeight]) {
    result[kWeight] = result[kWeight].to(a.weight.scalar_type());
  }
  return result;
}

// ---- shapes

Tensor forward_meta(const Arguments& a, const Options& options) {
  const auto params = check("conv2d", a, options);
  return a.input.new_empty_symint(
      {params.batch, a.weight.sym_size(0), params.axis[1].out_size, params.axis[2].out_size});
}

Gradients backward_meta(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  check_backward(grad_output, a, options, needs);
  const auto like = [](bool needed, const Tensor& tensor) {
    return needed ? tensor.new_empty_symint(tensor.sym_sizes()) : Tensor();
  };
  return {
      like(needs[kInput], a.input), like(needs[kWeight], a.weight), like(needs[kMap], a.dilation_map),
      like(needs[kMask], a.mask)};
}

}  // namespace

// ---- the operators through the dispatcher

Tensor conv2d(const Arguments& a, const Options& options) {
  static const auto op = find_operator<decltype(conv2d_schema<&forward>)>("ddu::conv2d");
  const auto& w = options.window;
  return op.call(
      a.input, a.weight, a.dilation_map, as_optional(a.bias), as_optional(a.mask), w.stride, w.padding, w.dilation,
      options.groups, w.groups, w.aligned, w.padding_mode, options.workspace_limit);
}

Gradients conv2d_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  static const auto op = find_operator<decltype(conv2d_backward_schema<&backward>)>("ddu::conv2d_backward");
  const auto& w = options.window;
  auto [grad_input, grad_weight, grad_dilation_map, grad_mask] = op.call(
      grad_output, a.input, a.weight, a.dilation_map, as_optional(a.mask), w.stride, w.padding, w.dilation,
      options.groups, w.groups, w.aligned, w.padding_mode, options.workspace_limit, needs);
  Gradients result = {grad_input, grad_weight, grad_dilation_map, grad_mask};
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = needs[i] ? result[i] : Tensor();
  }
  return result;
}

TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  m.impl("conv2d", TORCH_FN(conv2d_schema<&forward_in_chunks>));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_schema<&backward_in_chunks>));
}

namespace {

void register_shapes(torch::Library& m) {
  m.impl("conv2d", TORCH_FN(conv2d_schema<&forward_meta>));
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_schema<&backward_meta>));
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_shapes(m); }

// To refuse them: see meta.cpp.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_shapes(m); }

}  // namespace ddu::convolution
