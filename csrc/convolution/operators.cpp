// SPDX-License-Identifier: MIT
// The convolution's operators: checks, shapes, and how columns are kept small.

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

#include <algorithm>

#include "../dispatch/signatures.h"
#include "convolution.h"
#include "fused.h"

namespace ddu::convolution {

using at::Tensor;

// ---- checks

SymParams check(const char* op, const Arguments& a, const Options& options, const Caller& caller) {
  auto of = caller;
  of.axes = options.axes();
  return check_convolution(op, a.input, a.weight, a.positions, a.bias, a.mask, options.window, options.groups, of);
}

SymParams check_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto* const op = "convolution_backward";
  const auto params = check(op, a, options);
  check_convolution_gradient(
      op, grad_output, a.input, out_channels(a, options), params, a.mask.defined(), needs[kMask]);
  return params;
}

namespace {

// Under tracing there is no memory to limit, so the program is traced in one piece. A dispatch mode is still active
// here only if it asked for the operator to be decomposed.
bool is_traced(const Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->is_python_dispatch() || c10::impl::dispatch_mode_enabled();
}

// ---- the device's own kernels

Problem problem_of(const SymParams& sym, const Arguments& a, const Options& options) {
  return {
      concrete(sym), options.groups, out_channels(a, options).guard_int(__FILE__, __LINE__),
      a.mask.defined() ? a.mask.size(1) / options.taps() : 0, weight_per_image(a, options)};
}

// The device's kernels, if they are worth asking: with an empty tensor there is nothing to gain.
const Fused* fused_for(const Arguments& a) {
  const bool empty = a.input.numel() == 0 || a.weight.numel() == 0;
  return empty ? nullptr : fused(a.input.device().type());
}

// ---- by columns, in chunks of the batch

// The most bytes that columns may take at a time. On a CPU they should stay in its caches; a GPU needs to be kept busy.
constexpr double kColumnsOnCpu = 1 << 22;
constexpr double kColumnsElsewhere = 1 << 28;

// How many images to process at a time: as many as stay below the limit, but at least one. `copies` is the number of
// column-sized tensors that are alive at once.
int64_t chunk_size(const SymParams& sym, const Arguments& a, int64_t copies) {
  const auto params = concrete(sym);
  const auto columns = static_cast<double>(params.channels) * static_cast<double>(taps_of(params)) *
      static_cast<double>(positions_of(params)) * static_cast<double>(copies);
  const auto limit = a.input.is_cpu() ? kColumnsOnCpu : kColumnsElsewhere;
  const auto fit = limit / std::max(columns * static_cast<double>(a.input.element_size()), 1.0);
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(fit, static_cast<double>(params.batch))));
}

Arguments narrowed(const Arguments& a, const Options& options, int64_t start, int64_t size) {
  const auto narrow = [&](const Tensor& tensor, bool has_batch) {
    return tensor.defined() && has_batch ? tensor.narrow(0, start, size) : tensor;
  };
  return {
      narrow(a.input, true), narrow(a.weight, weight_per_image(a, options)), narrow(a.positions, true),
      narrow(a.bias, a.bias.defined() && a.bias.dim() == 2), narrow(a.mask, true)};
}

Shape output_shape(const SymParams& params, const Arguments& a, const Options& options) {
  Shape shape = {params.batch, out_channels(a, options)};
  for (int axis = params.first_axis(); axis < kMaxAxes; ++axis) {
    shape.push_back(params.axis[axis].out_size);
  }
  return shape;
}

Tensor forward_of_device(const Arguments& a, const Options& options) {
  const auto sym = check("convolution", a, options);
  if (is_traced(a.input)) {
    return forward(a, options);
  }
  if (const auto* const kernels = fused_for(a)) {
    const auto problem = problem_of(sym, a, options);
    if (kernels->takes(problem, a)) {
      return kernels->forward(problem, a);
    }
  }
  const auto batch = a.input.size(0);
  const auto chunk = chunk_size(sym, a, /*copies=*/a.mask.defined() ? 2 : 1);
  if (chunk >= batch) {
    return forward(a, options);
  }
  auto result =
      at::empty_symint(output_shape(sym, a, options), a.input.options().memory_format(a.input.suggest_memory_format()));
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto size = std::min(chunk, batch - start);
    result.narrow(0, start, size).copy_(forward(narrowed(a, options, start, size), options));
  }
  return result;
}

// The memory format of a gradient.
at::MemoryFormat format_of(size_t gradient, const Arguments& a) {
  return gradient == kInput ? a.input.suggest_memory_format() : at::MemoryFormat::Contiguous;
}

Gradients backward_of_device(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto sym = check_backward(grad_output, a, options, needs);
  if (is_traced(a.input)) {
    return backward(grad_output, a, options, needs);
  }
  if (const auto* const kernels = fused_for(a)) {
    const auto problem = problem_of(sym, a, options);
    if (kernels->takes_backward(problem, grad_output, a, needs)) {
      return kernels->backward(problem, grad_output, a, needs);
    }
  }
  const auto batch = a.input.size(0);
  const int64_t copies = (needs[kWeight] || needs[kMask] ? 1 : 0) +
      (needs[kInput] || needs[kPositions] || needs[kMask] ? 1 : 0) + (a.mask.defined() ? 1 : 0);
  const auto chunk = chunk_size(sym, a, copies);
  if (chunk >= batch) {
    return backward(grad_output, a, options, needs);
  }
  const std::array<Tensor, kGradients> arguments = {a.input, a.weight, a.positions, a.mask};
  const auto type = a.weight.scalar_type();
  const bool summed = needs[kWeight] && !weight_per_image(a, options);
  Gradients result(kGradients);
  for (size_t i = 0; i < kGradients; ++i) {
    if (needs[i]) {
      const auto like = arguments[i].options().memory_format(format_of(i, a));
      result[i] = i == kWeight && summed
          ? at::zeros(arguments[i].sizes(), arguments[i].options().dtype(at::toOpMathType(type)))
          : at::empty(arguments[i].sizes(), like);
    }
  }
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto size = std::min(chunk, batch - start);
    const auto part = backward(grad_output.narrow(0, start, size), narrowed(a, options, start, size), options, needs);
    for (size_t i = 0; i < kGradients; ++i) {
      if (needs[i] && i == kWeight && summed) {
        result[i].add_(part[i]);
      } else if (needs[i]) {
        result[i].narrow(0, start, size).copy_(part[i]);
      }
    }
  }
  if (summed) {
    result[kWeight] = result[kWeight].to(type);
  }
  return result;
}

// ---- shapes

Tensor forward_meta(const Arguments& a, const Options& options) {
  const auto params = check("convolution", a, options);
  return at::empty_symint(
      output_shape(params, a, options), a.input.options().memory_format(a.input.suggest_memory_format()));
}

Gradients backward_meta(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  check_backward(grad_output, a, options, needs);
  const std::array<Tensor, kGradients> arguments = {a.input, a.weight, a.positions, a.mask};
  Gradients result(kGradients);
  for (size_t i = 0; i < kGradients; ++i) {
    if (needs[i]) {
      result[i] = at::empty_symint(arguments[i].sym_sizes(), arguments[i].options().memory_format(format_of(i, a)));
    }
  }
  return result;
}

}  // namespace

// ---- the operators through the dispatcher

Tensor convolution(const Arguments& a, const Options& options) {
  static const auto op = find_operator<decltype(convolution_schema<&forward>)>("ddu::convolution");
  const auto& w = options.window;
  return op.call(
      a.input, a.weight, a.positions, as_optional(a.bias), as_optional(a.mask), w.source, w.stride, w.padding,
      w.dilation, options.groups, w.groups, w.aligned, w.padding_mode);
}

Gradients convolution_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  static const auto op = find_operator<decltype(convolution_backward_schema<&backward>)>("ddu::convolution_backward");
  const auto& w = options.window;
  auto [grad_input, grad_weight, grad_positions, grad_mask] = op.call(
      grad_output, a.input, a.weight, a.positions, as_optional(a.mask), w.source, w.stride, w.padding, w.dilation,
      options.groups, w.groups, w.aligned, w.padding_mode, needs);
  Gradients result = {grad_input, grad_weight, grad_positions, grad_mask};
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = needs[i] ? result[i] : Tensor();
  }
  return result;
}

TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  m.impl("convolution", TORCH_FN(convolution_schema<&forward_of_device>));
  m.impl("convolution_backward", TORCH_FN(convolution_backward_schema<&backward_of_device>));
}

namespace {

void register_shapes(torch::Library& m) {
  m.impl("convolution", TORCH_FN(convolution_schema<&forward_meta>));
  m.impl("convolution_backward", TORCH_FN(convolution_backward_schema<&backward_meta>));
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_shapes(m); }

// Registered only to be refused: see meta.cpp.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_shapes(m); }

}  // namespace ddu::convolution
