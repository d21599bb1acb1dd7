// SPDX-License-Identifier: MIT
// The CUDA device; its kernels are in kernels.cu.

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "device.h"
#include "launch.h"

namespace ddu::dcls {

namespace {

using at::Tensor;

const void* data_of(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

void* mutable_data_of(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

struct Cuda {
  static void build(
      const Problem& p, const Tensor& weight, const Tensor& positions, const Tensor& sigma, Tensor& result) {
    const c10::cuda::CUDAGuard guard(result.device());
    launch_build(
        p, result.scalar_type(), data_of(weight), data_of(positions), data_of(sigma), result.mutable_data_ptr(),
        c10::cuda::getCurrentCUDAStream());
  }

  static void differentiate(
      const Problem& p,
      const Tensor& grad_output,
      const Tensor& weight,
      const Tensor& positions,
      const Tensor& sigma,
      const Gradients& gradients) {
    const c10::cuda::CUDAGuard guard(grad_output.device());
    launch_differentiate(
        p, grad_output.scalar_type(), data_of(grad_output), data_of(weight), data_of(positions), data_of(sigma),
        mutable_data_of(gradients[kWeight]), mutable_data_of(gradients[kPositions]), mutable_data_of(gradients[kSigma]),
        c10::cuda::getCurrentCUDAStream());
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CUDA, m) { register_device<Cuda>(m); }

}  // namespace ddu::dcls
