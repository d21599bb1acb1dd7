// SPDX-License-Identifier: MIT
// How the family of derivatives changes with the positions, for formulas built from it. All results are differentiable,
// and undefined where they are zero.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include "../options.h"

namespace ddu {

// The change in the samples when the positions change by `direction`: [B, C * taps, L].
at::Tensor sample_along(
    const at::Tensor& input, const at::Tensor& positions, const at::Tensor& direction, const Options& options);

// The change in the samples' adjoint, an image.
at::Tensor splat_along(
    const at::Tensor& columns,
    c10::SymIntArrayRef output_size,
    const at::Tensor& positions,
    const at::Tensor& direction,
    const Options& options);

// The change in the gradient with respect to the positions, for columns times samples.
at::Tensor dots_along(
    const at::Tensor& columns,
    const at::Tensor& input,
    const at::Tensor& positions,
    const at::Tensor& direction,
    const Options& options);

}  // namespace ddu
