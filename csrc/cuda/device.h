// SPDX-License-Identifier: MIT
// What the kernels share: types, windows, corners. For nvcc only.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../math/bilinear.h"
#include "../math/geometry.h"
#include "launch.h"
#include "launches.h"

namespace ddu::cuda {

// The type that positions, weights and sums are computed in.
template <class scalar_t>
using Compute = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// ---- host

template <class F>
void dispatch_half_or_float(c10::ScalarType type, const F& f) {
  switch (type) {
    case c10::ScalarType::Float:
      return f(float());
    case c10::ScalarType::Half:
      return f(c10::Half());
    case c10::ScalarType::BFloat16:
      return f(c10::BFloat16());
    default:
      TORCH_INTERNAL_ASSERT(false, "no CUDA kernel for ", type);
  }
}

template <class F>
void dispatch_floating(c10::ScalarType type, const F& f) {
  return type == c10::ScalarType::Double ? f(double()) : dispatch_half_or_float(type, f);
}

template <class F>
void dispatch_index(bool wide, const F& f) {
  return wide ? f(int64_t()) : f(int32_t());
}

// Blocks of a one-dimensional grid.
inline unsigned grid_of(int64_t blocks) {
  TORCH_CHECK(
      blocks < (int64_t(1) << 31), "ddu: expected a problem of at most 2^31 - 1 blocks of threads, but got ", blocks);
  return static_cast<unsigned>(blocks);
}

template <class Int>
DDU_HOST_DEVICE Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

#if defined(__CUDACC__)

// NOTE [ Dependent launches ]
// The kernels of a backward follow one another on a stream. From compute capability 9.0 on, one may begin while the one
// before it still runs (programmatic dependent launch), which hides the time of the launch and of what needs no result:
// the kernel before says let_next_begin(), and the one that was launched with launch_after() says
// wait_for_previous() before it touches anything the other has written or still reads. Without either, on older GPUs,
// a kernel begins when the one before has ended.
template <class... Parameters, class... Arguments>
void launch_after(
    void (*kernel)(Parameters...),
    unsigned blocks,
    unsigned threads,
    int64_t shared_bytes,
    cudaStream_t stream,
    const Arguments&... arguments) {
  int device = 0;
  int major = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = major >= 9 ? 1 : 0;
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

// ---- device

__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <class T>
__device__ __forceinline__ bool is_finite(T x) {
  return x - x == 0;
}

template <class scalar_t>
__device__ __forceinline__ Compute<scalar_t> load(const scalar_t* p) {
  return static_cast<Compute<scalar_t>>(__ldg(reinterpret_cast<const scalar_t*>(p)));
}
template <>
__device__ __forceinline__ float load(const c10::Half* p) {
  return __half2float(__ldg(reinterpret_cast<const __half*>(p)));
}
template <>
__device__ __forceinline__ float load(const c10::BFloat16* p) {
  return __uint_as_float(static_cast<unsigned>(__ldg(reinterpret_cast<const unsigned short*>(p))) << 16);
}

// The rates of one window, and what follows from its position.
template <class T>
struct Window {
  T rate_h, rate_w;
  int64_t centre_h, centre_w;
  bool finite;
};

// scalar_t: the type of the map, unless map.is_float.
template <class scalar_t>
__device__ __forceinline__ Window<Compute<scalar_t>> load_window(
    const UnfoldParams& p, const MapView& map, int64_t b, int64_t g, int64_t i, int64_t j) {
  using T = Compute<scalar_t>;
  const int64_t offset = b * map.batch + g * p.rates * map.channel + i * map.row + j * map.column;
  const auto rate = [&](int64_t at) {
    return map.is_float ? static_cast<T>(load(static_cast<const float*>(map.data) + at))
                        : load(static_cast<const scalar_t*>(map.data) + at);
  };
  Window<T> window;
  window.rate_h = rate(offset);
  window.rate_w = p.rates == 1 ? window.rate_h : rate(offset + map.channel);
  window.finite = is_finite(window.rate_h) && is_finite(window.rate_w);
  window.centre_h = centre_pixel(p.h, i, p.aligned);
  window.centre_w = centre_pixel(p.w, j, p.aligned);
  return window;
}

template <class T>
__device__ __forceinline__ Neighbours<T> tap_neighbours(
    const Axis<int64_t>& axis, bool aligned, int64_t centre, T rate, int64_t tap) {
  return neighbours(axis.size, centre, centre_fraction<T>(axis, aligned), tap_slope<T>(axis, tap), rate);
}

// An axis in 32 bits, for the fast kernels.
struct FastAxis {
  int size, out_size, kernel, stride;
  int first_centre;  // centre_pixel of output index 0
  float fraction;    // centre_fraction
  float half_dilation;

  __device__ __forceinline__ int centre(int out_index) const { return out_index * stride + first_centre; }

  // tap_slope
  __device__ __forceinline__ float slope(int tap) const {
    return static_cast<float>(2 * tap - (kernel - 1)) * half_dilation;
  }

  __device__ __forceinline__ Neighbours<float, int> neighbours_of(int tap, int centre, float rate) const {
    return neighbours<float, int>(size, centre, fraction, slope(tap), rate);
  }
};

inline FastAxis fast_axis(const Axis<int64_t>& axis, bool aligned) {
  return {
      static_cast<int>(axis.size),
      static_cast<int>(axis.out_size),
      static_cast<int>(axis.kernel),
      static_cast<int>(axis.stride),
      static_cast<int>(centre_pixel(axis, 0, aligned)),
      centre_fraction<float>(axis, aligned),
      static_cast<float>(axis.dilation) / 2};
}

#endif

}  // namespace ddu::cuda
