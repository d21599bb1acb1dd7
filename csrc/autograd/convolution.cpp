// SPDX-License-Identifier: MIT
// Autograd of the convolution. Its backward is an operator, so that its columns are temporary too: see convolution.h.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include "../convolution/convolution.h"
#include "node.h"

namespace ddu::convolution {

namespace {

using at::Tensor;

// For x = Arguments::list(). The bias isn't saved; `sizes` holds its number of dimensions instead.
struct Formula {
  static constexpr const char* kName = "DynamicDilationConvolutionBackward";
  using Options = convolution::Options;

  static OutputMask output_mask(const Needs& needs) { return {needs[0], needs[1], needs[2], needs[4]}; }

  static bool any(const OutputMask& mask) { return mask != OutputMask{}; }

  // The backward needs all the tensors but the bias, if only for their shapes.
  static Needs saved(const Needs& needs) {
    const bool backward = any(output_mask(needs));
    return {backward, backward, backward, false, backward};
  }

  static variable_list vjp(
      const variable_list& grads,
      const variable_list& x,
      const Options& options,
      const Sizes& sizes,
      const Needs& needs) {
    variable_list result(x.size());
    const auto& grad = grads[0];
    const auto wanted = output_mask(needs);
    if (any(wanted)) {
      const auto gradients = convolution_backward(grad, {x[0], x[1], x[2], Tensor(), x[4]}, options, wanted);
      result[0] = gradients[kInput];
      result[1] = gradients[kWeight];
      result[2] = gradients[kPositions];
      result[4] = gradients[kMask];
    }
    if (needs[3]) {
      std::vector<int64_t> summed;
      for (int64_t dim = 0; dim < grad.dim(); ++dim) {
        if (dim >= 2 || (dim == 0 && sizes[0] == 1)) {
          summed.push_back(dim);
        }
      }
      result[3] = grad.sum(summed);
    }
    return result;
  }
};

// The derivative of the backward, for x = {grad_output, input, weight, positions, mask}; `sizes` holds which gradients
// were asked for. A caller who could differentiate the gradients but doesn't, as under torch.func, should not pay for
// columns. So only here are the gradients computed again in differentiable steps, which are then differentiated.
struct BackwardFormula {
  static constexpr const char* kName = "DynamicDilationConvolutionBackwardBackward";
  using Options = convolution::Options;

  static Needs saved(const Needs&) { return {true, true, true, true, true}; }

  static variable_list vjp(
      const variable_list& grads,
      const variable_list& x,
      const Options& options,
      const Sizes& sizes,
      const Needs& needs) {
    const bool again = at::GradMode::is_enabled();
    const at::AutoGradMode recording(true);
    variable_list inputs = x;
    variable_list wanted;
    for (size_t i = 0; i < x.size(); ++i) {
      if (needs[i] && !again) {
        inputs[i] = x[i].detach().requires_grad_();
      }
      if (needs[i]) {
        wanted.push_back(inputs[i]);
      }
    }
    OutputMask asked;
    for (size_t i = 0; i < kGradients; ++i) {
      asked[i] = grads[i].defined() && sizes[i] == 1;
    }
    const auto gradients = backward(inputs[0], {inputs[1], inputs[2], inputs[3], Tensor(), inputs[4]}, options, asked);
    variable_list outputs;
    variable_list cotangents;
    for (size_t i = 0; i < kGradients; ++i) {
      if (asked[i] && gradients[i].requires_grad()) {
        outputs.push_back(gradients[i]);
        cotangents.push_back(grads[i]);
      }
    }
    variable_list result(x.size());
    if (outputs.empty() || wanted.empty()) {
      return result;
    }
    const auto found = torch::autograd::grad(
        outputs, wanted, cotangents, /*retain_graph=*/std::nullopt, /*create_graph=*/again, /*allow_unused=*/true);
    size_t next = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (needs[i]) {
        result[i] = found[next++];
      }
    }
    return result;
  }
};

Tensor forward_autograd(const Arguments& a, const Options& options) {
  const auto tensors = a.list();
  if (any_tangent(tensors)) {
    check("convolution", a, options);
    return forward(a, options);
  }
  const Sizes bias_dims = {a.bias.defined() ? a.bias.dim() : 0};
  return recorded<Formula>(tensors, options, bias_dims, [&] { return variable_list{convolution(a, options)}; })[0];
}

Gradients backward_autograd(
    const Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
  const variable_list tensors = {grad_output, a.input, a.weight, a.positions, a.mask};
  if (any_tangent(tensors)) {
    check_backward(grad_output, a, options, needs);
    return backward(grad_output, a, options, needs);
  }
  const Sizes asked(needs.begin(), needs.end());
  return recorded<BackwardFormula>(
      tensors, options, asked, [&] { return convolution_backward(grad_output, a, options, needs); });
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, Autograd, m) {
  m.impl("convolution", TORCH_FN(convolution_schema<&forward_autograd>));
  m.impl("convolution_backward", TORCH_FN(convolution_backward_schema<&backward_autograd>));
}

}  // namespace ddu::convolution
