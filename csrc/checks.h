// SPDX-License-Identifier: MIT
// From the tensors and options of a call to checked Params: the only door to them, and every check of the project.
//
// Every device and Meta come in here, so no kernel runs on unchecked arguments, whichever way the call came, and what
// is refused when it runs is refused with the same words when it is traced. `op` is the operator's name, for messages.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>
#include <c10/core/SymIntArrayRef.h>

#include "params.h"
#include "window.h"

namespace ddu {

using SymParams = Params<c10::SymInt>;

enum class Caller {
  kOperator,  // strictly batched
  kModel,     // unbatched arguments and a batch size of 1 for the map are fine, and autocast may yet change the types
};

// sample and unfold: input [B, C, H, W], dilation_map [B, rates * G, H_out, W_out].
SymParams check_sample(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& dilation_map,
    const Window& window,
    Caller caller = Caller::kOperator);

// splat and fold: columns [B, C * kH * kW, L].
SymParams check_splat(
    const char* op,
    const at::Tensor& columns,
    c10::SymIntArrayRef output_size,
    const at::Tensor& dilation_map,
    const Window& window,
    Caller caller = Caller::kOperator);

// dot, and unfold_backward, which calls its columns grad_output.
SymParams check_dot(
    const char* op,
    const char* columns_name,
    const at::Tensor& columns,
    const at::Tensor& input,
    const at::Tensor& dilation_map,
    const Window& window);

// conv2d: weight [C_out, C / groups, kH, kW], bias [C_out] and mask [B, G * kH * kW, H_out, W_out] or undefined. The
// window's groups are the dilation groups G, its kernel_size is the weight's.
SymParams check_convolution(
    const char* op,
    const at::Tensor& input,
    const at::Tensor& weight,
    const at::Tensor& dilation_map,
    const at::Tensor& bias,
    const at::Tensor& mask,
    const Window& window,
    int64_t groups,
    int64_t workspace_limit,
    Caller caller = Caller::kOperator);

// What conv2d_backward takes besides: grad_output [B, C_out, H_out, W_out], and no gradient of a mask that is not
// there.
void check_convolution_gradient(
    const char* op,
    const at::Tensor& grad_output,
    const at::Tensor& input,
    const at::Tensor& weight,
    const SymParams& params,
    bool has_mask,
    bool needs_mask);

// The same with plain integers, for a kernel.
UnfoldParams concrete(const SymParams& params);

}  // namespace ddu
