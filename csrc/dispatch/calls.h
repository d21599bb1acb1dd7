// SPDX-License-Identifier: MIT
// The operators as C++ functions. Each goes through the dispatcher, so autograd, autocast and so on apply.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <tuple>

#include "../options.h"

namespace ddu {

// With rates as positions. The three functions ignore options.source and options.order.
at::Tensor unfold(const at::Tensor& input, const at::Tensor& dilation_map, const Options& options);
at::Tensor fold(
    const at::Tensor& columns, c10::SymIntArrayRef output_size, const at::Tensor& dilation_map, const Options& options);
std::tuple<at::Tensor, at::Tensor> unfold_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& dilation_map, const Options& options);

at::Tensor sample(const at::Tensor& input, const at::Tensor& positions, const Options& options);
at::Tensor splat(
    const at::Tensor& columns, c10::SymIntArrayRef output_size, const at::Tensor& positions, const Options& options);
at::Tensor dot(const at::Tensor& columns, const at::Tensor& input, const at::Tensor& positions, const Options& options);
std::tuple<at::Tensor, at::Tensor> sample_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& positions, const Options& options);

}  // namespace ddu
