// SPDX-License-Identifier: MIT
#pragma once

// Marks what both a host compiler and nvcc compile.
#if defined(__CUDACC__)
#define DDU_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DDU_HOST_DEVICE inline
#endif
