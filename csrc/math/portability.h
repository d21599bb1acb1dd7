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

// The same for what is rarely called, and would take registers where it is inlined.
#if defined(__CUDACC__)
#define DDU_HOST_DEVICE_RARE __host__ __device__ __noinline__ inline
#else
#define DDU_HOST_DEVICE_RARE DDU_HOST_DEVICE
#endif
