// SPDX-License-Identifier: MIT
// The largest sample of every window, and the gradients through the tap that was taken. A thread owns some channels of
// a position and goes through the taps of the window.

#include "device.h"
#include "pool.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 8;  // per thread

// The position and channels that a thread owns. `threads` threads share a position of a group. They are neighbours if
// the channels are adjacent; otherwise neighbouring threads own neighbouring positions.
struct Share {
  int64_t group;  // among the batch's B * G
  int64_t position;
  int64_t first, step;  // channels within the group

  __device__ __forceinline__ Share(const UnfoldParams& p, int64_t threads, bool channels_inside, int64_t number) {
    const int64_t length = positions_of(p);
    const int64_t inner = channels_inside ? threads : length;
    const int64_t outer = number / inner;
    const int64_t thread = channels_inside ? number % inner : outer % threads;
    position = channels_inside ? outer % length : number % inner;
    group = channels_inside ? outer / length : outer / threads;
    first = channels_inside ? thread : thread * kChannels;
    step = channels_inside ? threads : 1;
  }
};

int64_t threads_of(const UnfoldParams& p) { return ceil_div<int64_t>(p.channels / p.groups, kChannels); }

template <class scalar_t, class Index, int kAxes, bool kPlain>
__device__ __forceinline__ bool counts(const Window<scalar_t, Index, kAxes, kPlain>& window) {
  bool inside = true;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    const auto last = static_cast<Index>(window.p.axis[kMaxAxes - kAxes + a].size) - 1;
    inside = inside && window.neighbour[a] >= 0 && (window.neighbour[a] < last || window.fraction[a] == 0);
  }
  return inside || !window.finite;
}

template <int kAxes, class Index>
__device__ __forceinline__ CornerOffsets<kAxes, Index> offsets_in(const ImageView& image) {
  CornerOffsets<kAxes, Index> offsets;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    offsets.step[a] = static_cast<Index>(image.axis[kMaxAxes - kAxes + a]);
  }
  return offsets;
}

template <class scalar_t, class Index, int kAxes, bool kPlain>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const __grid_constant__ UnfoldParams p, const __grid_constant__ PoolCall call, int64_t threads) {
  using T = Compute<scalar_t>;
  constexpr int kCorners = 1 << kAxes;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= p.batch * p.groups * positions_of(p) * threads) {
    return;
  }
  const Share share(p, threads, call.channels_inside, number);
  const auto b = share.group / p.groups;
  const auto g = share.group % p.groups;
  const auto per_group = p.channels / p.groups;
  Window<scalar_t, Index, kAxes, kPlain> window(
      p, call.positions, static_cast<Index>(b), static_cast<Index>(g), static_cast<Index>(share.position));
  const auto offsets = offsets_in<kAxes, Index>(call.input);
  const auto* const image = static_cast<const scalar_t*>(call.input.data) + b * call.input.batch +
      (g * per_group + share.first) * call.input.channel;
  const auto step = static_cast<Index>(share.step * call.input.channel);

  T largest[kChannels];
  int taken[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    largest[i] = -std::numeric_limits<T>::infinity();
    taken[i] = -1;
  }
  window.for_taps([&](Index tap) {
    if (call.ignore && !counts(window)) {
      return;
    }
    const auto w = window.weights(p.term);
    const unsigned inside = window.corners_inside();
    const scalar_t* const corner = image + offsets.at(window.neighbour);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      if (share.first + i * share.step < per_group) {
        T value = 0;
#pragma unroll
        for (int k = 0; k < kCorners; ++k) {
          value += w.corner[k] * ((inside & 1u << k) != 0 ? load(corner + i * step + offsets[k]) : T(0));
        }
        if (value > largest[i] || value != value || taken[i] < 0) {
          largest[i] = value;
          taken[i] = static_cast<int>(tap);
        }
      }
    }
  });
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    const int64_t c = share.first + i * share.step;
    if (c < per_group) {
      const int64_t at =
          b * call.grid.batch + (g * per_group + c) * call.grid.channel + share.position * call.grid.position;
      static_cast<scalar_t*>(call.values)[at] = static_cast<scalar_t>(largest[i]);
      call.taps[at] = taken[i];
    }
  }
}

template <class scalar_t, class Index, int kAxes, bool kPlain>
__global__ void __launch_bounds__(kThreads) pool_backward_kernel(
    const __grid_constant__ UnfoldParams p, const __grid_constant__ PoolGradients call, int64_t threads) {
  using T = Compute<scalar_t>;
  constexpr int kCorners = 1 << kAxes;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (number >= p.batch * p.groups * positions_of(p) * threads) {
    return;
  }
  const Share share(p, threads, call.channels_inside, number);
  const auto b = share.group / p.groups;
  const auto g = share.group % p.groups;
  const auto per_group = p.channels / p.groups;
  Window<scalar_t, Index, kAxes, kPlain> window(
      p, call.positions, static_cast<Index>(b), static_cast<Index>(g), static_cast<Index>(share.position));
  const auto offsets = offsets_in<kAxes, Index>(call.input);
  const auto sum_offsets = offsets_in<kAxes, Index>(call.by_input);
  const auto* const image = static_cast<const scalar_t*>(call.input.data) + b * call.input.batch +
      (g * per_group + share.first) * call.input.channel;
  auto* const sums = static_cast<T*>(const_cast<void*>(call.by_input.data)) + b * call.by_input.batch +
      (g * per_group + share.first) * call.by_input.channel;

  T grad[kChannels];
  int taken[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    const int64_t c = share.first + i * share.step;
    grad[i] = 0;
    taken[i] = -1;
    if (c < per_group) {
      const int64_t channel = g * per_group + c;
      grad[i] = load(
          static_cast<const scalar_t*>(call.grad.data) + b * call.grad.batch + channel * call.grad.channel +
          share.position * call.grad.position);
      const int64_t tap = static_cast<const int64_t*>(
          call.taps.data)[b * call.taps.batch + channel * call.taps.channel + share.position * call.taps.position];
      taken[i] = tap < taps_of(p) ? static_cast<int>(tap) : -1;
    }
  }
  // Of each dot its products with the distances along every axis, then the dot itself.
  constexpr int kMultiples = kPlain ? 1 : kAxes + 1;
  T dots[kMaxAxes][kMultiples] = {};
  const auto is_wanted = [&](int e) {
    return e + 1 == kMultiples || (call.multiples > 1 && kMaxAxes - kAxes + e >= p.first_axis());
  };
  // Adds the sums so far to entry `entry` of the group, and clears them.
  const auto finish = [&](int64_t entry) {
#pragma unroll
    for (int d = 0; d < kMaxAxes; ++d) {
      int64_t multiple = 0;
#pragma unroll
      for (int e = 0; e < kMultiples; ++e) {
        if (d < call.dots && is_wanted(e)) {
          const int64_t number = (share.group * positions_per_group(p) + entry) * call.dots + d;
          const int64_t at = (number * call.multiples + multiple++) * positions_of(p) + share.position;
          atomicAdd(static_cast<T*>(call.by_positions) + at, dots[d][e]);
          dots[d][e] = 0;
        }
      }
    }
  };
  window.for_taps([&](Index tap) {
    const auto w = window.weights(p.term);
    const unsigned inside = window.finite ? window.corners_inside() : 0u;
    const Index corner = offsets.at(window.neighbour);
    const Index sum_corner = sum_offsets.at(window.neighbour);
    T products[kCorners] = {};
    bool any = false;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      if (taken[i] != static_cast<int>(tap)) {
        continue;
      }
      any = true;
      if (call.by_input.data != nullptr) {
        T* const to = sums + i * share.step * call.by_input.channel + sum_corner;
#pragma unroll
        for (int k = 0; k < kCorners; ++k) {
          if ((inside & 1u << k) != 0) {
            atomicAdd(to + sum_offsets[k], w.corner[k] * grad[i]);
          }
        }
      }
      if (call.dots > 0) {
        const scalar_t* const from = image + i * share.step * call.input.channel + corner;
        T partial[kCorners];
#pragma unroll
        for (int k = 0; k < kCorners; ++k) {
          partial[k] = (inside & 1u << k) != 0 ? load(from + offsets[k]) : T(0);
        }
        differentiate(window.fraction, window.direction, partial);
#pragma unroll
        for (int q = 0; q < kCorners; ++q) {
          products[q] += grad[i] * partial[q];
        }
      }
    }
    if (call.dots == 0 || !(any || !window.finite)) {
      return;
    }
    T distance[kAxes];
    window.distances(distance);
#pragma unroll
    for (int d = 0; d < kMaxAxes; ++d) {
      if (d < call.dots) {
        T value = window.finite ? T(0) : std::numeric_limits<T>::quiet_NaN();
#pragma unroll
        for (int q = 0; q < kCorners; ++q) {
          if (call.terms[d].count[q] != 0) {
            value += term_factor(call.terms[d], q, distance) * products[q];
          }
        }
#pragma unroll
        for (int e = 0; e < kMultiples; ++e) {
          if (is_wanted(e)) {
            dots[d][e] += e + 1 < kMultiples ? distance[e] * value : value;
          }
        }
      }
    }
    if (per_tap(window.source)) {
      finish(tap);
    }
  });
  if (call.dots > 0 && !per_tap(window.source)) {
    finish(0);
  }
}

unsigned grid_for(const UnfoldParams& p) {
  return grid_of(ceil_div<int64_t>(p.batch * p.groups * positions_of(p) * threads_of(p), kThreads));
}

}  // namespace

void launch_pool(const UnfoldParams& p, c10::ScalarType type, bool wide, const PoolCall& call, cudaStream_t stream) {
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_general(p, wide, [&](auto index, auto axes, auto plain) {
      const auto kernel =
          counted<pool_kernel<scalar_t, decltype(index), decltype(axes)::value, decltype(plain)::value>>();
      kernel.launch()<<<grid_for(p), kThreads, 0, stream>>>(p, call, threads_of(p));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_pool_backward(
    const UnfoldParams& p, c10::ScalarType type, bool wide, const PoolGradients& call, cudaStream_t stream) {
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_general(p, wide, [&](auto index, auto axes, auto plain) {
      const auto kernel =
          counted<pool_backward_kernel<scalar_t, decltype(index), decltype(axes)::value, decltype(plain)::value>>();
      kernel.launch()<<<grid_for(p), kThreads, 0, stream>>>(p, call, threads_of(p));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
