// SPDX-License-Identifier: MIT
// The operators as C++ functions: each goes through the dispatcher, so autograd, autocast and the rest apply.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <tuple>

#include "window.h"

namespace ddu {

// `unfold`, `fold` and `unfold_backward` take no notice of window.order.
at::Tensor unfold(const at::Tensor& input, const at::Tensor& dilation_map, const Window& window);
at::Tensor fold(
    const at::Tensor& columns, c10::SymIntArrayRef output_size, const at::Tensor& dilation_map, const Window& window);
std::tuple<at::Tensor, at::Tensor> unfold_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& dilation_map, const Window& window);

at::Tensor sample(const at::Tensor& input, const at::Tensor& dilation_map, const Window& window);
at::Tensor splat(
    const at::Tensor& columns, c10::SymIntArrayRef output_size, const at::Tensor& dilation_map, const Window& window);
at::Tensor dot(
    const at::Tensor& columns, const at::Tensor& input, const at::Tensor& dilation_map, const Window& window);

}  // namespace ddu
