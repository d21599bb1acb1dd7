// SPDX-License-Identifier: MIT
// Where a device registers a kernel that convolves without columns. It does so in a file of its own, as a static
// object:
//
//     const convolution::Registered cpu(c10::DeviceType::CPU, {takes, forward, takes_backward, backward});
//
// Calls that the kernel doesn't take go through columns, in chunks: operators.cpp.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceType.h>

#include "../params.h"
#include "convolution.h"

namespace ddu::convolution {

// The sizes of a call, all checked. None of its tensors is empty: see operators.cpp.
struct Problem {
  UnfoldParams window;  // its groups are the dilation groups
  int64_t groups;
  int64_t out_channels;
  int64_t mask_groups;  // channel c reads mask group c / (channels / mask_groups); 0 without a mask
  bool weight_per_image;
};

// Arguments are checked and may have any strides. Positions may be expanded, and may be float32 with a half type.
// Results are new tensors. The convolution and the gradient with respect to the input have the input's memory format
// (input.suggest_memory_format()), other gradients are contiguous, and those not asked for stay undefined.
struct Fused {
  bool (*takes)(const Problem& problem, const Arguments& a);
  at::Tensor (*forward)(const Problem& problem, const Arguments& a);
  bool (*takes_backward)(
      const Problem& problem, const at::Tensor& grad_output, const Arguments& a, const OutputMask& needs);
  Gradients (*backward)(
      const Problem& problem, const at::Tensor& grad_output, const Arguments& a, const OutputMask& needs);
};

// The device's kernels, or null.
const Fused* fused(c10::DeviceType device);

struct Registered {
  Registered(c10::DeviceType device, const Fused& kernels);
};

}  // namespace ddu::convolution
