// SPDX-License-Identifier: MIT
#pragma once

// Marks code compiled for both host and device. It is always inlined: an out-of-line copy compiled for one instruction
// set could be linked into code for another.
#if defined(__CUDACC__)
#define DDU_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define DDU_HOST_DEVICE inline __attribute__((always_inline))
#else
#define DDU_HOST_DEVICE inline
#endif

// The same for functions that are rarely called and would use up registers if inlined.
#if defined(__CUDACC__)
#define DDU_HOST_DEVICE_RARE __host__ __device__ __noinline__ inline
#else
#define DDU_HOST_DEVICE_RARE DDU_HOST_DEVICE
#endif
