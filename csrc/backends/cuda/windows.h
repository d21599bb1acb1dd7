// SPDX-License-Identifier: MIT
// Where the taps of an output position lie, for the kernels with pixel-major images and 32-bit indices: the fused
// convolution and the sums of windows. For nvcc only.
#pragma once

#include "device.h"

namespace ddu::cuda {

// A problem's windows, as these kernels see them.
struct Windows {
  UnfoldParams p;
  FastAxis axis[kMaxAxes];
  PositionsView positions;
  int taps, length;
};

inline Windows windows_of(const UnfoldParams& p, const PositionsView& positions) {
  Windows w = {};
  w.p = p;
  for (int a = 0; a < kMaxAxes; ++a) {
    w.axis[a] = fast_axis(p, a);
  }
  w.positions = positions;
  w.taps = static_cast<int>(taps_of(p));
  w.length = static_cast<int>(positions_of(p));
  return w;
}

// The window of an output position, and the tap that was begun last.
template <class scalar_t, int kAxes>
struct Locator {
  static constexpr int kFirst = kMaxAxes - kAxes;

  const Windows& w;
  int64_t at;  // the output position's place in the positions
  int pixel[kAxes];
  float parameter[kAxes];
  bool finite;
  int tap[kAxes];

  // For batch item b.
  __device__ __forceinline__ Locator(const Windows& w, int b, const int (&index)[kAxes])
      : w(w), at(b * w.positions.batch) {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      at += index[a] * w.positions.axis[kFirst + a];
      pixel[a] = w.axis[kFirst + a].pixel(index[a]);
    }
  }

  __device__ __forceinline__ void begin(int number) {
#pragma unroll
    for (int a = kAxes - 1; a > 0; --a) {
      const int rest = w.axis[kFirst + a].divide_by_kernel(number);
      tap[a] = number - rest * w.axis[kFirst + a].kernel;
      number = rest;
    }
    tap[0] = number;
  }

  // Of the window, or of tap `number`: unless by_axis(), call begin(number) first.
  __device__ __forceinline__ void load_parameters(int group, int number) {
    float distance[kAxes] = {};
    if (w.p.source == Source::kAffine) {
      distances(distance);
    }
    finite = ddu::cuda::load_parameters<scalar_t>(w.p, w.positions, w.p.source, at, group, number, distance, parameter);
  }

  // The tap's distances from the window's centre at rate one.
  __device__ __forceinline__ void distances(float (&distance)[kAxes]) const {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      distance[a] = w.axis[kFirst + a].distance(tap[a]);
    }
  }

  __device__ __forceinline__ float slope(int a) const { return w.axis[kFirst + a].slope(w.p.source, tap[a]); }

  __device__ __forceinline__ void locate(Neighbours<float, int> (&n)[kAxes]) const {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      n[a] = w.axis[kFirst + a].template neighbours_of<false>(w.p.source, tap[a], pixel[a], parameter[a]);
    }
  }

  // Bit c: whether corner c lies in the image.
  __device__ __forceinline__ unsigned corners_inside(const Neighbours<float, int> (&n)[kAxes]) const {
    return ddu::cuda::corners_inside<kAxes>(
        [&](int a) { return n[a].pixel; }, [&](int a) { return w.axis[kFirst + a].size; });
  }
};

// The indices of an output position that is numbered in row-major order.
template <int kAxes>
__device__ __forceinline__ void index_of(const Windows& w, int position, int (&index)[kAxes]) {
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const int size = w.axis[kMaxAxes - kAxes + a].out_size;
    const int rest = a == 0 ? 0 : position / size;
    index[a] = position - rest * size;
    position = rest;
  }
}

// Loads 16 bytes, or returns zeros if `wanted` is 0. Has no branch, so that loads can overlap.
__device__ __forceinline__ uint4 load_packet_if(unsigned wanted, const void* from) {
  uint4 r;
  asm("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t"
      "mov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\tmov.b32 %2, 0;\n\tmov.b32 %3, 0;\n\t"
      "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "=&r"(r.x), "=&r"(r.y), "=&r"(r.z), "=&r"(r.w)
      : "l"(from), "r"(wanted));
  return r;
}

// Adds four numbers at an address that is a multiple of 16.
__device__ __forceinline__ void add4(float* to, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

}  // namespace ddu::cuda
