// SPDX-License-Identifier: MIT
// The functions of kernels.cu that cuda.cpp calls. Each queues its work on `stream` and returns. `type` is the type of
// the result and its gradient; everything else has the type that is computed in, float or double. Layouts: share.h.
// sigma may be null, and so may gradients that are not wanted.
#pragma once

#include <c10/core/ScalarType.h>
#include <cuda_runtime_api.h>

#include "share.h"

namespace ddu::dcls {

void launch_build(
    const Problem& p,
    c10::ScalarType type,
    const void* weight,
    const void* positions,
    const void* sigma,
    void* result,
    cudaStream_t stream);

void launch_differentiate(
    const Problem& p,
    c10::ScalarType type,
    const void* grad_output,
    const void* weight,
    const void* positions,
    const void* sigma,
    void* grad_weight,
    void* grad_positions,
    void* grad_sigma,
    cudaStream_t stream);

}  // namespace ddu::dcls
