// SPDX-License-Identifier: MIT
#pragma once

// Marks what host and device compile. Always inlined: a copy of its own, made for one instruction set, could be linked
// into code for another.
#if defined(__CUDACC__)
#define DDU_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DDU_HOST_DEVICE inline __attribute__((always_inline))
#else
#define DDU_HOST_DEVICE inline
#endif
