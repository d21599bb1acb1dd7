// SPDX-License-Identifier: MIT
// The sparse form on a device with kernels of its own. The device is a struct with two static functions of contiguous
// tensors:
//     sum(problem, input, factors, shifts, output)
//     dot(problem, left, input, shifts, result)
// The factors and the dot's result have the type that is computed in.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "sparse.h"

namespace ddu::dcls {

template <class Device>
struct SparseOnDevice {
  static at::Tensor sum(
      const at::Tensor& input, const at::Tensor& factors, const at::Tensor& shifts, c10::SymIntArrayRef output_size) {
    const auto shape = check_sparse_sum(input, factors, shifts, output_size);
    auto output = at::empty_symint(shape, input.options());
    if (output.numel() != 0) {
      const auto type = at::toOpMathType(input.scalar_type());
      Device::sum(
          problem(input, output, shifts), input.contiguous(), factors.to(type).contiguous(), shifts.contiguous(),
          output);
    }
    return output;
  }

  static at::Tensor dot(const at::Tensor& left, const at::Tensor& input, const at::Tensor& shifts) {
    const auto shape = check_sparse_dot(left, input, shifts);
    const auto type = at::toOpMathType(input.scalar_type());
    auto result = at::empty_symint(shape, input.options().dtype(type));
    if (result.numel() != 0) {
      Device::dot(problem(input, left, shifts), left.contiguous(), input.contiguous(), shifts.contiguous(), result);
    }
    return result.to(input.scalar_type());
  }

 private:
  static SparseProblem problem(const at::Tensor& input, const at::Tensor& output, const at::Tensor& shifts) {
    SparseProblem p = {input.size(0), input.size(1), shifts.size(2), shifts.size(0), {1, 1, 1}, {1, 1, 1}};
    for (int64_t axis = 0; axis < p.axes; ++axis) {
      p.input[p.first_axis() + axis] = input.size(2 + axis);
      p.output[p.first_axis() + axis] = output.size(2 + axis);
    }
    return p;
  }
};

template <class Device>
void register_sparse(torch::Library& m) {
  m.impl("dcls_sparse_sum", TORCH_FN(SparseOnDevice<Device>::sum));
  m.impl("dcls_sparse_dot", TORCH_FN(SparseOnDevice<Device>::dot));
}

}  // namespace ddu::dcls
