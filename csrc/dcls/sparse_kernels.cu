// SPDX-License-Identifier: MIT
// The sparse form: NOTE [ Sparse form ] in sparse.h. Nothing is added atomically: every run gives the same bits.
//
// Lanes own neighbouring positions, so the reads for a tap are adjacent, wherever the tap has moved. A block computes
// the displacement of each tap once. What one tap reads stays in the L1 for the next ones.

#include <limits>

#include "../backends/cuda/device.h"
#include "sparse_launch.h"

namespace ddu::dcls {

namespace {

using cuda::ceil_div;
using cuda::Compute;
using cuda::counted;
using cuda::dispatch_floating;
using cuda::dispatch_index;
using cuda::grid_of;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kTaps = 64;    // sum: taps in shared memory at once
constexpr int kPixels = 4;   // sum: pixels per thread
constexpr int kDotTaps = 8;  // dot: taps per block

template <class Index>
struct Tap {
  Index shift[kMaxAxes];
  Index pixels;  // along all axes together
};

// Shifts are clamped so that adding an index doesn't overflow; an index so far away is outside.
template <class Index>
__device__ __forceinline__ Tap<Index> tap_of(
    const SparseProblem& p, const int64_t* shifts, int64_t channel, int64_t j) {
  constexpr int64_t kFar = std::numeric_limits<Index>::max() / 2;
  Tap<Index> tap;
  uint64_t pixels = 0;  // overflows only for taps that reach nothing
#pragma unroll
  for (int a = 0; a < kMaxAxes; ++a) {
    const int64_t shift = shift_of(p, shifts, channel, j, a);
    tap.shift[a] = static_cast<Index>(shift < -kFar ? -kFar : shift > kFar ? kFar : shift);
    pixels = pixels * static_cast<uint64_t>(p.input[a]) + static_cast<uint64_t>(tap.shift[a]);
  }
  tap.pixels = static_cast<Index>(pixels);
  return tap;
}

template <class Index>
struct Pixel {
  Index index[kMaxAxes];
  Index at;  // in the input, without a shift
};

template <class Index>
__device__ __forceinline__ Pixel<Index> pixel_of(const SparseProblem& p, Index position) {
  const Index width = static_cast<Index>(p.output[2]);
  const Index height = static_cast<Index>(p.output[1]);
  const Index line = position / width;
  const Index plane = line / height;
  const Index row = line - plane * height;
  const Index column = position - line * width;
  return {
      {plane, row, column}, (plane * static_cast<Index>(p.input[1]) + row) * static_cast<Index>(p.input[2]) + column};
}

// Whether a pixel's tap is inside along the last kAxes axes.
template <int kAxes, class Index>
__device__ __forceinline__ bool reaches(const SparseProblem& p, const Pixel<Index>& pixel, const Tap<Index>& tap) {
  using Unsigned = std::make_unsigned_t<Index>;
  bool inside = true;
#pragma unroll
  for (int a = kMaxAxes - kAxes; a < kMaxAxes; ++a) {
    inside &= static_cast<Unsigned>(pixel.index[a] + tap.shift[a]) < static_cast<Unsigned>(p.input[a]);
  }
  return inside;
}

// A block owns kThreads * kPixels positions of a plane.
template <class scalar_t, class Index, int kAxes>
__global__ void __launch_bounds__(kThreads) sparse_sum_kernel(
    const SparseProblem p,
    const int64_t tiles,                            // per plane
    const scalar_t* __restrict__ input,             // [B, C, *input]
    const Compute<scalar_t>* __restrict__ factors,  // [C, taps]
    const int64_t* __restrict__ shifts,             // [N, C, taps]
    scalar_t* __restrict__ output) {                // [B, C, *output]
  using T = Compute<scalar_t>;
  __shared__ Tap<Index> taps[kTaps];
  __shared__ T weights[kTaps];
  const int64_t plane = blockIdx.x / tiles;
  const int64_t channel = plane % p.channels;
  const Index length = static_cast<Index>(p.output_size());
  const Index first = static_cast<Index>(blockIdx.x % tiles * (kThreads * kPixels) + threadIdx.x);
  const scalar_t* const from = input + plane * p.input_size();
  Pixel<Index> pixels[kPixels];
  T sums[kPixels] = {};
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    pixels[i] = pixel_of<Index>(p, first + i * kThreads);
    if (first + i * kThreads >= length) {
      pixels[i].index[2] = std::numeric_limits<Index>::min() / 2;  // reaches nothing
    }
  }
  for (int64_t begin = 0; begin < p.taps; begin += kTaps) {
    const int count = static_cast<int>(p.taps - begin < kTaps ? p.taps - begin : kTaps);
    __syncthreads();
    if (threadIdx.x < count) {
      taps[threadIdx.x] = tap_of<Index>(p, shifts, channel, begin + threadIdx.x);
      weights[threadIdx.x] = factors[channel * p.taps + begin + threadIdx.x];
    }
    __syncthreads();
    for (int j = 0; j < count; ++j) {
      const auto tap = taps[j];
      const T weight = weights[j];
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (reaches<kAxes>(p, pixels[i], tap)) {
          sums[i] += weight * static_cast<T>(from[pixels[i].at + tap.pixels]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    if (first + i * kThreads < length) {
      output[plane * p.output_size() + first + i * kThreads] = static_cast<scalar_t>(sums[i]);
    }
  }
}

// A block owns kDotTaps taps of a channel. Its threads share the positions and, where those are few, the images.
template <class scalar_t, class Index, int kAxes>
__global__ void __launch_bounds__(kThreads) sparse_dot_kernel(
    const SparseProblem p,
    const int64_t tap_blocks,                  // per channel
    const int lanes,                           // threads of a block that share an image's positions
    const scalar_t* __restrict__ left,         // [B, C, *output]
    const scalar_t* __restrict__ input,        // [B, C, *input]
    const int64_t* __restrict__ shifts,        // [N, C, taps]
    Compute<scalar_t>* __restrict__ result) {  // [C, taps]
  using T = Compute<scalar_t>;
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Tap<Index> taps[kDotTaps];
  __shared__ T parts[kWarps][kDotTaps];
  const int64_t channel = blockIdx.x / tap_blocks;
  const int64_t begin = blockIdx.x % tap_blocks * kDotTaps;
  const int count = static_cast<int>(p.taps - begin < kDotTaps ? p.taps - begin : kDotTaps);
  if (threadIdx.x < count) {
    taps[threadIdx.x] = tap_of<Index>(p, shifts, channel, begin + threadIdx.x);
  }
  __syncthreads();
  const Index length = static_cast<Index>(p.output_size());
  T sums[kDotTaps] = {};
  for (Index position = static_cast<Index>(threadIdx.x) % lanes; position < length; position += lanes) {
    const auto pixel = pixel_of<Index>(p, position);
    unsigned reached = 0;
#pragma unroll
    for (int j = 0; j < kDotTaps; ++j) {
      reached |= j < count && reaches<kAxes>(p, pixel, taps[j]) ? 1u << j : 0u;
    }
    for (int64_t b = threadIdx.x / lanes; b < p.batch; b += kThreads / lanes) {
      const int64_t plane = b * p.channels + channel;
      const T factor = static_cast<T>(left[plane * p.output_size() + position]);
      const scalar_t* const from = input + plane * p.input_size() + pixel.at;
#pragma unroll
      for (int j = 0; j < kDotTaps; ++j) {
        if (reached >> j & 1) {
          sums[j] += factor * static_cast<T>(from[taps[j].pixels]);
        }
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kDotTaps; ++j) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      sums[j] += __shfl_xor_sync(0xffffffff, sums[j], step);
    }
    if (threadIdx.x % kWarp == 0) {
      parts[threadIdx.x / kWarp][j] = sums[j];
    }
  }
  __syncthreads();
  if (threadIdx.x < count) {
    T sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += parts[warp][threadIdx.x];
    }
    result[channel * p.taps + begin + threadIdx.x] = sum;
  }
}

// Whether 32 bits are too few to index the pixels of a plane.
bool is_wide(const SparseProblem& p) {
  constexpr int64_t kLimit = int64_t(1) << 29;
  return cuda::forced.wide || p.input_size() >= kLimit || p.output_size() >= kLimit;
}

// Calls f with constants: an index, and the number of axes that the kernel sees.
template <class F>
void dispatch_sizes(const SparseProblem& p, const F& f) {
  dispatch_index(is_wide(p), [&](auto index) {
    if (p.axes == 3) {
      f(index, std::integral_constant<int, 3>());
    } else {
      f(index, std::integral_constant<int, 2>());
    }
  });
}

}  // namespace

void launch_sparse_sum(
    const SparseProblem& p,
    c10::ScalarType type,
    const void* input,
    const void* factors,
    const int64_t* shifts,
    void* output,
    cudaStream_t stream) {
  const int64_t tiles = ceil_div<int64_t>(p.output_size(), kThreads * kPixels);
  const auto grid = grid_of(p.batch * p.channels * tiles);
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_sizes(p, [&](auto index, auto axes) {
      const auto kernel = counted<sparse_sum_kernel<scalar_t, decltype(index), decltype(axes)::value>>();
      kernel.launch()<<<grid, kThreads, 0, stream>>>(
          p, tiles, static_cast<const scalar_t*>(input), static_cast<const Compute<scalar_t>*>(factors), shifts,
          static_cast<scalar_t*>(output));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_sparse_dot(
    const SparseProblem& p,
    c10::ScalarType type,
    const void* left,
    const void* input,
    const int64_t* shifts,
    void* result,
    cudaStream_t stream) {
  const int64_t tap_blocks = ceil_div<int64_t>(p.taps, kDotTaps);
  const auto grid = grid_of(p.channels * tap_blocks);
  int lanes = kWarp;
  while (lanes < kThreads && lanes < p.output_size()) {
    lanes *= 2;
  }
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_sizes(p, [&](auto index, auto axes) {
      const auto kernel = counted<sparse_dot_kernel<scalar_t, decltype(index), decltype(axes)::value>>();
      kernel.launch()<<<grid, kThreads, 0, stream>>>(
          p, tap_blocks, lanes, static_cast<const scalar_t*>(left), static_cast<const scalar_t*>(input), shifts,
          static_cast<Compute<scalar_t>*>(result));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::dcls
