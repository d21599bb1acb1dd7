// SPDX-License-Identifier: MIT
// Where a device plugs in a kernel that convolves without columns. Its own file registers one, as a static object:
//
//     const convolution::Registered cpu(c10::DeviceType::CPU, {takes, forward, takes_backward, backward});
//
// What it does not take goes by columns, in chunks: operators.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceType.h>

#include "../params.h"
#include "convolution.h"

namespace ddu::convolution {

// The sizes of a call, all checked. Nothing in it is empty: see operators.cpp.
struct Problem {
  UnfoldParams window;  // its groups are the dilation groups
  int64_t groups;
  int64_t out_channels;
  int64_t mask_groups;  // channel c reads the mask of group c / (channels / mask_groups); 0 without a mask
  bool weight_per_image;
};

// Arguments are checked and may have any strides; positions may be expanded, and of float32 beside a half type. Results
// are new tensors: the convolution and the gradient by the input in the memory format of the input
// (input.suggest_memory_format()), other gradients contiguous; what is not needed stays undefined.
struct Fused {
  bool (*takes)(const Problem& problem, const Arguments& a);
  at::Tensor (*forward)(const Problem& problem, const Arguments& a);
  bool (*takes_backward)(
      const Problem& problem, const at::Tensor& grad_output, const Arguments& a, const OutputMask& needs);
  Gradients (*backward)(
      const Problem& problem, const at::Tensor& grad_output, const Arguments& a, const OutputMask& needs);
};

// Of a device, or null.
const Fused* fused(c10::DeviceType device);

struct Registered {
  Registered(c10::DeviceType device, const Fused& kernels);
};

}  // namespace ddu::convolution
