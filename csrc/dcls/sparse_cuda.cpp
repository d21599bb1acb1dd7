// SPDX-License-Identifier: MIT
// The sparse form on CUDA; its kernels are in sparse_kernels.cu.

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "sparse_device.h"
#include "sparse_launch.h"

namespace ddu::dcls {

namespace {

using at::Tensor;

struct Cuda {
  static void sum(
      const SparseProblem& p, const Tensor& input, const Tensor& factors, const Tensor& shifts, Tensor& output) {
    const c10::cuda::CUDAGuard guard(input.device());
    launch_sparse_sum(
        p, input.scalar_type(), input.const_data_ptr(), factors.const_data_ptr(), shifts.const_data_ptr<int64_t>(),
        output.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  }

  static void dot(
      const SparseProblem& p, const Tensor& left, const Tensor& input, const Tensor& shifts, Tensor& result) {
    const c10::cuda::CUDAGuard guard(input.device());
    launch_sparse_dot(
        p, input.scalar_type(), left.const_data_ptr(), input.const_data_ptr(), shifts.const_data_ptr<int64_t>(),
        result.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CUDA, m) { register_sparse<Cuda>(m); }

}  // namespace ddu::dcls
