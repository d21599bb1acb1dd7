// SPDX-License-Identifier: MIT
// What kernels.cu offers to cuda.cpp. Every function queues its work on `stream` and returns. `type` is that of the
// result and of its gradient; the rest is in the type that is computed in, float or double. Layouts: share.h. sigma may
// be null, and so may a gradient that is not wanted.
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
