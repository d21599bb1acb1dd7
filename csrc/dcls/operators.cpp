// SPDX-License-Identifier: MIT
// The operators through the dispatcher, on the Meta device, and in terms of ATen's.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../checks.h"
#include "../dispatch/signatures.h"
#include "dcls.h"

namespace ddu::dcls {

using at::Tensor;

namespace {

Shape check(const char* op, const Arguments& a, const Options& options) {
  return check_dcls(op, a.weight, a.positions, a.sigma, options.kernel_size, options.version);
}

void check_backward(const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const auto* const op = "dcls_kernel_backward";
  check_dcls_gradient(op, grad_output, a.weight, check(op, a, options), a.sigma.defined(), needs[kSigma]);
}

OptionalTensor as_optional(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

// ---- in terms of ATen

Tensor forward_aten(const Arguments& a, const Options& options) {
  check("dcls_kernel", a, options);
  return forward(a, options);
}

Gradients backward_aten(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  check_backward(grad_output, a, options, needs);
  return backward(grad_output, a, options, needs);
}

// ---- shapes

Tensor forward_meta(const Arguments& a, const Options& options) {
  return a.weight.new_empty_symint(check("dcls_kernel", a, options));
}

Gradients backward_meta(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  check_backward(grad_output, a, options, needs);
  const auto arguments = a.list();
  Gradients result(kGradients);
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = needs[i] ? arguments[i].new_empty_symint(arguments[i].sym_sizes()) : Tensor();
  }
  return result;
}

void register_shapes(torch::Library& m) {
  m.impl("dcls_kernel", TORCH_FN(schema<&forward_meta>));
  m.impl("dcls_kernel_backward", TORCH_FN(backward_schema<&backward_meta>));
}

}  // namespace

// ---- the operators through the dispatcher

Tensor kernel(const Arguments& a, const Options& options) {
  static const auto op = find_operator<decltype(schema<&forward>)>("ddu::dcls_kernel");
  return op.call(a.weight, a.positions, options.kernel_size, as_optional(a.sigma), options.version);
}

Gradients kernel_backward(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  static const auto op = find_operator<decltype(backward_schema<&backward>)>("ddu::dcls_kernel_backward");
  auto [grad_weight, grad_positions, grad_sigma] =
      op.call(grad_output, a.weight, a.positions, options.kernel_size, as_optional(a.sigma), options.version, needs);
  Gradients result = {grad_weight, grad_positions, grad_sigma};
  for (size_t i = 0; i < kGradients; ++i) {
    result[i] = needs[i] ? result[i] : Tensor();
  }
  return result;
}

// Also called with sparse tensors, quantised ones and the like: the checks refuse them and name the argument.
TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) {
  m.impl("dcls_kernel", TORCH_FN(schema<&forward_aten>));
  m.impl("dcls_kernel_backward", TORCH_FN(backward_schema<&backward_aten>));
}

TORCH_LIBRARY_IMPL(ddu, Meta, m) { register_shapes(m); }

// Registered only to be refused: see backends/meta.
TORCH_LIBRARY_IMPL(ddu, NestedTensorCPU, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorCUDA, m) { register_shapes(m); }
TORCH_LIBRARY_IMPL(ddu, NestedTensorMeta, m) { register_shapes(m); }

}  // namespace ddu::dcls
