// SPDX-License-Identifier: MIT
// Autograd of the kernel. The first gradients are an operator. What is differentiated again, or has a tangent, goes
// through the steps of formulas.cpp, which torch can differentiate.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "../autograd/node.h"
#include "../checks.h"
#include "dcls.h"

namespace ddu::dcls {

namespace {

using at::Tensor;

// For x = Arguments::list().
struct Formula {
  static constexpr const char* kName = "DclsKernelBackward";
  using Options = dcls::Options;

  static Needs saved(const Needs& needs) {
    const bool backward = any(needs);
    return {backward, backward, backward};
  }

  static variable_list vjp(
      const variable_list& grads, const variable_list& x, const Options& options, const Sizes&, const Needs& needs) {
    const OutputMask wanted = {needs[kWeight], needs[kPositions], needs[kSigma]};
    return any(needs) ? kernel_backward(grads[0], {x[kWeight], x[kPositions], x[kSigma]}, options, wanted)
                      : variable_list(x.size());
  }
};

Tensor forward_autograd(const Arguments& a, const Options& options) {
  const auto tensors = a.list();
  if (any_tangent(tensors)) {
    check_dcls("dcls_kernel", a.weight, a.positions, a.sigma, options.kernel_size, options.version);
    return forward(a, options);
  }
  return recorded<Formula>(tensors, options, {}, [&] { return variable_list{kernel(a, options)}; })[0];
}

Gradients backward_autograd(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  auto tensors = a.list();
  tensors.push_back(grad_output);
  if (any_tangent(tensors) || any(needs_gradient(tensors))) {
    const auto* const op = "dcls_kernel_backward";
    const auto shape = check_dcls(op, a.weight, a.positions, a.sigma, options.kernel_size, options.version);
    check_dcls_gradient(op, grad_output, a.weight, shape, a.sigma.defined(), needs[kSigma]);
    return backward(grad_output, a, options, needs);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return kernel_backward(grad_output, a, options, needs);
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  m.impl("dcls_kernel", TORCH_FN(schema<&forward_autograd>));
  m.impl("dcls_kernel_backward", TORCH_FN(backward_schema<&backward_autograd>));
}

}  // namespace ddu::dcls
