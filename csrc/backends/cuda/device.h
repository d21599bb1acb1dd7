// SPDX-License-Identifier: MIT
// What the kernels share: types, windows and corners. For nvcc only.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../../math/interpolation.h"
#include "../../math/positions.h"
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

// Calls f with constants: the source, and whether the padding mode is known to be zeros. For the fast kernels, which
// are short of registers.
template <class F>
void dispatch_fast(const UnfoldParams& p, const F& f) {
  if (p.source == Source::kOffsets) {
    f(std::integral_constant<Source, Source::kOffsets>(), std::false_type());
  } else if (p.source == Source::kAffine) {
    f(std::integral_constant<Source, Source::kAffine>(), std::false_type());
  } else if (p.padding_mode == PaddingMode::kZeros) {
    f(std::integral_constant<Source, Source::kRates>(), std::true_type());
  } else {
    f(std::integral_constant<Source, Source::kRates>(), std::false_type());
  }
}

// Calls f with constants: a number, the number of axes, and whether the source is known to be rates and the padding
// mode zeros. For the general kernels. The number has the type of offsets and pixels.
template <class F>
void dispatch_general(const UnfoldParams& p, bool wide, const F& f) {
  const auto with_axes = [&](auto index, auto plain) {
    if (p.axes == 3) {
      f(index, std::integral_constant<int, 3>(), plain);
    } else {
      f(index, std::integral_constant<int, 2>(), plain);
    }
  };
  for (const auto& axis : p.axis) {
    wide = wide || !fits_int32(axis);
  }
  if (wide) {
    with_axes(int64_t(), std::false_type());
  } else if (p.source == Source::kRates && p.padding_mode == PaddingMode::kZeros) {
    with_axes(int32_t(), std::true_type());
  } else {
    with_axes(int32_t(), std::false_type());
  }
}

template <class F>
void dispatch_index(bool wide, const F& f) {
  return wide ? f(int64_t()) : f(int32_t());
}

// The size of a one-dimensional grid.
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
// The kernels of a backward follow one another on a stream. From compute capability 9.0 on, one may begin while the
// previous one is still running (programmatic dependent launch). This hides the time of the launch and of all work that
// needs no result. The previous kernel calls let_next_begin(). The one launched with launch_after() calls
// wait_for_previous() before it touches anything that the other has written or still reads. Without either, and on
// older GPUs, a kernel begins when the previous one has ended.
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

// A parameter along an axis; zero if the problem lacks that axis. `at` is in elements. Positions have the type
// scalar_t, or else float.
template <class scalar_t>
__device__ __forceinline__ Compute<scalar_t> load_position(
    const UnfoldParams& p, const PositionsView& positions, int64_t at, int axis) {
  using T = Compute<scalar_t>;
  if (axis < p.first_axis()) {
    return T(0);
  }
  return positions.is_float ? static_cast<T>(load(static_cast<const float*>(positions.data) + at))
                            : load(static_cast<const scalar_t*>(positions.data) + at);
}

// The same for a tap of a group. `at` is the output position's.
template <class scalar_t>
__device__ __forceinline__ Compute<scalar_t> load_parameter(
    const UnfoldParams& p, const PositionsView& positions, int64_t at, int64_t group, int64_t tap, int axis) {
  return load_position<scalar_t>(p, positions, at + parameter_channel(p, group, tap, axis) * positions.channel, axis);
}

// The affine map of a group's window: for each of kAxes axes a row of the matrix and a shift, zeros for axes that the
// problem lacks. Returns whether the map is finite.
template <class scalar_t, int kAxes>
__device__ __forceinline__ bool load_map(
    const UnfoldParams& p,
    const PositionsView& positions,
    int64_t at,
    int64_t group,
    Compute<scalar_t> (&map)[kAxes][kAxes + 1]) {
  constexpr int kFirst = kMaxAxes - kAxes;
  bool finite = true;
  int64_t from = at + group * p.parameters * positions.channel;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
#pragma unroll
    for (int e = 0; e <= kAxes; ++e) {
      const bool there = kFirst + (a < e ? a : e) >= p.first_axis();
      map[a][e] = there ? load_position<scalar_t>(p, positions, from, kFirst + a) : Compute<scalar_t>(0);
      finite = finite && is_finite(map[a][e]);
      from += there ? positions.channel : 0;
    }
  }
  return finite;
}

// The displacements of a tap along every axis; NaN where the map is not finite.
template <int kAxes, class T>
__device__ __forceinline__ void displace(
    const T (&map)[kAxes][kAxes + 1], bool finite, const T (&distance)[kAxes], T (&parameter)[kAxes]) {
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    T matrix[kAxes];
#pragma unroll
    for (int e = 0; e < kAxes; ++e) {
      matrix[e] = map[a][e];
    }
    parameter[a] = finite ? displacement(matrix, map[a][kAxes], distance) : std::numeric_limits<T>::quiet_NaN();
  }
}

// What takes the parameter's place along every axis, for a group's window or for tap `number` of it. With an affine map
// `distance` holds the tap's distances. Returns whether all parameters are finite.
template <class scalar_t, int kAxes>
__device__ __forceinline__ bool load_parameters(
    const UnfoldParams& p,
    const PositionsView& positions,
    Source source,
    int64_t at,
    int64_t group,
    int64_t number,
    const Compute<scalar_t> (&distance)[kAxes],
    Compute<scalar_t> (&parameter)[kAxes]) {
  if (source == Source::kAffine) {
    Compute<scalar_t> map[kAxes][kAxes + 1];
    const bool finite = load_map<scalar_t>(p, positions, at, group, map);
    displace(map, finite, distance, parameter);
    return finite;
  }
  bool finite = true;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    parameter[a] = load_parameter<scalar_t>(p, positions, at, group, number, kMaxAxes - kAxes + a);
    finite = finite && is_finite(parameter[a]);
  }
  return finite;
}

// Bit c: whether corner c of a tap lies in the image, of the pixel before the tap and the image's size along axis a.
template <int kAxes, class Pixel, class Size>
__device__ __forceinline__ unsigned corners_inside(const Pixel& pixel, const Size& size) {
  constexpr unsigned kAll = (1u << (1 << kAxes)) - 1;
  unsigned inside = kAll;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    unsigned after = 0;  // corners after the tap
#pragma unroll
    for (int c = 0; c < 1 << kAxes; ++c) {
      after |= (c & axis_bit(kMaxAxes - kAxes + a)) != 0 ? 1u << c : 0;
    }
    const auto first = pixel(a);
    const bool low = first >= 0;
    const bool high = first >= -1 && first + 1 < size(a);
    inside &= (low ? kAll & ~after : 0) | (high ? after : 0);
  }
  return inside;
}

// A window of a problem treated as one with kAxes axes, and the tap that it last moved to. kPlain: the source is known
// to be rates, and the padding mode zeros.
template <class scalar_t, class Index, int kAxes, bool kPlain>
struct Window {
  using T = Compute<scalar_t>;
  static constexpr int kFirst = kMaxAxes - kAxes;

  const UnfoldParams& p;
  const PositionsView& positions;
  const Source source;
  Index group;         // within the batch item
  int64_t at;          // the output position's place in the positions
  Index pixel[kAxes];  // of the window, before the tap's displacement
  T parameter[kAxes];
  bool finite;  // all parameters of the window or the tap
  Index tap[kAxes];
  T fraction[kAxes];  // of the tap, like neighbour and direction: see Neighbours
  T direction[kAxes];
  Index neighbour[kAxes];

  __device__ __forceinline__
  Window(const UnfoldParams& p, const PositionsView& positions, Index b, Index group, Index position)
      : p(p), positions(positions), source(kPlain ? Source::kRates : p.source), group(group), at(b * positions.batch) {
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      const auto& axis = p.axis[kFirst + a];
      const Index index = a == 0 ? position : position % static_cast<Index>(axis.out_size);
      if (a > 0) {
        position /= static_cast<Index>(axis.out_size);
      }
      at += index * positions.axis[kFirst + a];
      pixel[a] = static_cast<Index>(index * axis.stride + first_pixel(axis, source, p.aligned));
    }
    if (by_axis(source)) {
      move(0);
    }
  }

  // Moves to each tap in turn and calls visit(tap).
  template <class Visit>
  __device__ __forceinline__ void for_taps(const Visit& visit) {
    along<0>(visit, 0);
  }

  // Bit c: whether corner c of the tap lies in the image.
  __device__ __forceinline__ unsigned corners_inside() const {
    return ddu::cuda::corners_inside<kAxes>(
        [&](int a) { return neighbour[a]; }, [&](int a) { return static_cast<Index>(p.axis[kFirst + a].size); });
  }

  // The tap's distance from the window's centre at rate one, along every axis.
  __device__ __forceinline__ void distances(T (&distance)[kAxes]) const {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      distance[a] = tap_distance<T>(p.axis[kFirst + a], tap[a]);
    }
  }

  // NaN for a tap that isn't finite: it has no neighbours, so NaN multiplies the zeros that are read instead.
  __device__ __forceinline__ CornerWeights<kAxes, T> weights(const Term& term) const {
    AxisWeights<T> along[kAxes];
    T distance[kAxes];
    distances(distance);
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      along[a] = axis_weights(fraction[a], direction[a]);
    }
    auto result = corner_weights(along, distance, term);
    if (!finite) {
#pragma unroll
      for (int c = 0; c < 1 << kAxes; ++c) {
        result.corner[c] = std::numeric_limits<T>::quiet_NaN();
      }
    }
    return result;
  }

 private:
  // Visits the taps with index `number` along the axes before axis a, in row-major order. If the taps of a window share
  // their parameters, each place along an axis is located once for all taps with it.
  template <int a, class Visit>
  __device__ __forceinline__ void along(const Visit& visit, Index number) {
    if constexpr (a == kAxes) {
      if (!by_axis(source)) {
        move(number);
#pragma unroll
        for (int each = 0; each < kAxes; ++each) {
          locate(each);
        }
      }
      visit(number);
    } else {
      const Index kernel = static_cast<Index>(p.axis[kFirst + a].kernel);
      for (tap[a] = 0; tap[a] < kernel; ++tap[a]) {
        if (by_axis(source)) {
          locate(a);
        }
        along<a + 1>(visit, number * kernel + tap[a]);
      }
    }
  }

  __device__ __forceinline__ void locate(int a) {
    const auto& axis = p.axis[kFirst + a];
    const auto place = tap_place<T>(axis, source, p.aligned, tap[a]);
    const auto found = neighbours<T, Index>(
        static_cast<Index>(axis.size), pixel[a] + place.pixels, place.fraction, place.slope, parameter[a],
        kPlain ? PaddingMode::kZeros : p.padding_mode);
    neighbour[a] = found.pixel;
    fraction[a] = found.fraction;
    direction[a] = kPlain ? T(1) : found.direction;
  }

  // Loads the parameters of tap `number`, or with rates those of the window.
  __device__ __forceinline__ void move(Index number) {
    T distance[kAxes] = {};
    if (!by_axis(source)) {
      distances(distance);
    }
    finite = load_parameters<scalar_t>(p, positions, source, at, group, number, distance, parameter);
  }
};

// Distances of a tap's corners from its first one, in elements.
template <int kAxes, class Index>
struct CornerOffsets {
  Index step[kAxes];

  __device__ __forceinline__ Index operator[](int c) const {
    Index offset = 0;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      offset += (c & axis_bit(kMaxAxes - kAxes + a)) != 0 ? step[a] : Index(0);
    }
    return offset;
  }

  // The offset of the first corner, given its pixel along every axis.
  __device__ __forceinline__ Index at(const Index (&pixel)[kAxes]) const {
    Index offset = 0;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      offset += pixel[a] * step[a];
    }
    return offset;
  }
};

// An axis in 32 bits, for the fast kernels: tap_place, specialised at compile time.
struct FastAxis {
  int size, out_size, kernel, stride;
  int first_pixel;  // of the window at output index 0
  int dilation;
  float fraction;
  float half_dilation;
  PaddingMode padding_mode;
  unsigned kernel_inverse;  // 2^32 / kernel, rounded up; 0 for 1

  // `number`, a tap's, must fit 16 bits, and so must the kernel size.
  __device__ __forceinline__ int divide_by_kernel(int number) const {
    return kernel_inverse == 0 ? number : static_cast<int>(__umulhi(static_cast<unsigned>(number), kernel_inverse));
  }

  __device__ __forceinline__ int pixel(int out_index) const { return out_index * stride + first_pixel; }

  // The tap's distance from the window's centre at rate one.
  __device__ __forceinline__ float distance(int tap) const {
    return static_cast<float>(2 * tap - (kernel - 1)) * half_dilation;
  }

  // d position / d parameter.
  __device__ __forceinline__ float slope(Source source, int tap) const { return by_axis(source) ? distance(tap) : 1.f; }

  // The neighbours of a tap of the window at `pixel`. kZeros: the padding mode is zeros; other modes cost registers.
  template <bool kZeros>
  __device__ __forceinline__ Neighbours<float, int> neighbours_of(
      Source source, int tap, int pixel, float parameter) const {
    return neighbours<float, int>(
        size, per_tap(source) ? pixel + tap * dilation : pixel, fraction, slope(source, tap), parameter,
        kZeros ? PaddingMode::kZeros : padding_mode);
  }
};

inline FastAxis fast_axis(const UnfoldParams& p, int a) {
  const auto& axis = p.axis[a];
  return {
      static_cast<int>(axis.size),
      static_cast<int>(axis.out_size),
      static_cast<int>(axis.kernel),
      static_cast<int>(axis.stride),
      static_cast<int>(first_pixel(axis, p.source, p.aligned)),
      static_cast<int>(axis.dilation),
      centre_fraction<float>(axis, p.source, p.aligned),
      static_cast<float>(axis.dilation) / 2,
      p.padding_mode,
      axis.kernel == 1 ? 0 : static_cast<unsigned>(((int64_t(1) << 32) + axis.kernel - 1) / axis.kernel)};
}

#endif

}  // namespace ddu::cuda
