// SPDX-License-Identifier: MIT
// The functions of sparse_kernels.cu that sparse_cuda.cpp calls. Each queues its work on `stream` and returns. `type`
// is the type of the images; the factors and the dot's result have the type that is computed in. Layouts: sparse.h.
#pragma once

#include <c10/core/ScalarType.h>
#include <cuda_runtime_api.h>

#include "sparse.h"

namespace ddu::dcls {

void launch_sparse_sum(
    const SparseProblem& p,
    c10::ScalarType type,
    const void* input,
    const void* factors,
    const int64_t* shifts,
    void* output,
    cudaStream_t stream);

void launch_sparse_dot(
    const SparseProblem& p,
    c10::ScalarType type,
    const void* left,
    const void* input,
    const int64_t* shifts,
    void* result,
    cudaStream_t stream);

}  // namespace ddu::dcls
