// SPDX-License-Identifier: MIT
// The operators on a device with kernels of its own. The device is a struct with two static functions of contiguous
// tensors. These have the type that is computed in, except for the result and its gradient, which have the weight's:
//     build(problem, weight, positions, sigma, result)
//     differentiate(problem, grad_output, weight, positions, sigma, gradients)
// A tensor that is missing, or not asked for, is undefined.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "dcls.h"
#include "share.h"

namespace ddu::dcls {

template <class Device>
struct OnDevice {
  static at::Tensor build(const Arguments& a, const Options& options) {
    const auto shape = check_dcls("dcls_kernel", a.weight, a.positions, a.sigma, options.kernel_size, options.version);
    auto result = at::empty_symint(shape, a.weight.options());
    if (result.numel() != 0) {
      Device::build(problem(a, options), computed(a.weight), computed(a.positions), computed(a.sigma), result);
    }
    return result;
  }

  static Gradients differentiate(
      const at::Tensor& grad_output, const Arguments& a, const Options& options, const OutputMask& needs) {
    const auto* const op = "dcls_kernel_backward";
    const auto shape = check_dcls(op, a.weight, a.positions, a.sigma, options.kernel_size, options.version);
    check_dcls_gradient(op, grad_output, a.weight, shape, a.sigma.defined(), needs[kSigma]);
    const auto arguments = a.list();
    Gradients result(kGradients);
    for (size_t i = 0; i < kGradients; ++i) {
      if (needs[i]) {
        result[i] =
            at::empty(arguments[i].sizes(), arguments[i].options().dtype(at::toOpMathType(a.weight.scalar_type())));
      }
    }
    if (a.weight.numel() != 0) {
      Device::differentiate(
          problem(a, options), grad_output.contiguous(), computed(a.weight), computed(a.positions), computed(a.sigma),
          result);
    }
    for (size_t i = 0; i < kGradients; ++i) {
      if (needs[i]) {
        result[i] = result[i].to(arguments[i].scalar_type());
      }
    }
    return result;
  }

 private:
  static at::Tensor computed(const at::Tensor& tensor) {
    return tensor.defined() ? tensor.to(at::toOpMathType(tensor.scalar_type())).contiguous() : tensor;
  }

  static Problem problem(const Arguments& a, const Options& options) {
    Problem p = {a.weight.size(0) * a.weight.size(1), a.weight.size(2), a.positions.size(0), {1, 1, 1}, {}};
    for (int64_t axis = 0; axis < p.axes; ++axis) {
      p.size[p.first_axis() + axis] = options.kernel_size[options.kernel_size.size() == 1 ? 0 : axis];
    }
    p.version = version_of(options.version);
    return p;
  }
};

template <class Device>
void register_device(torch::Library& m) {
  m.impl("dcls_kernel", TORCH_FN(schema<&OnDevice<Device>::build>));
  m.impl("dcls_kernel_backward", TORCH_FN(backward_schema<&OnDevice<Device>::differentiate>));
}

}  // namespace ddu::dcls
