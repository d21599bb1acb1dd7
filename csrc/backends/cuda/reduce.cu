// SPDX-License-Identifier: MIT
// splat, dot, and both at once: for any type, strides and derivative.

// NOTE [ Reduce kernel ]
// A block owns 32 output positions of a group and all its channels: thread (x, y) owns position x and every kParts-th
// channel from y on. An entry of columns is read once, by neighbouring threads for neighbouring positions, and used for
// both results.
// - dot: for each tap, a thread sums columns * partial derivative over its channels, separately for each partial
//   derivative with respect to the position. So every wanted derivative takes a few products per tap, not per channel.
//   The parts of a block are added in order, so the result is the same in every run.
// - splat: each corner's share is added to `sums` atomically. Floating point sums depend on the order; where they must
//   not, sums are fixed point (NOTE [ Fixed point ]).

#include "fixed_point.h"

namespace ddu::cuda {

namespace {

constexpr int kLanes = 32;
constexpr int kParts = 8;

struct Terms {
  Term splat;
  Term dot[kMaxAxes];
  int dots;
  int multiples;  // per dot: see math/positions.h
};

template <class scalar_t, class Index, int kAxes, bool kPlain, bool kSplat, bool kDot>
__global__ void __launch_bounds__(kLanes* kParts) reduce_kernel(
    const UnfoldParams p,
    const ColumnsView columns,      // [B, C * taps, L]
    const PositionsView positions,  // [B, channels, *out]
    const Sums sums,                // [B, C, *size]
    const ImageView input,          // [B, C, *size]
    const Terms terms,
    void* __restrict__ result,  // [B, G, positions_per_group, dots, multiples, L]
    const Index position_blocks) {
  using T = Compute<scalar_t>;
  constexpr int kCorners = 1 << kAxes;
  constexpr int kFirst = kMaxAxes - kAxes;
  const Index length = static_cast<Index>(positions_of(p));
  const Index position = static_cast<Index>(blockIdx.x) % position_blocks * kLanes + threadIdx.x;
  const Index group = static_cast<Index>(blockIdx.x) / position_blocks;  // among the batch's B * G
  const bool inside = position < length;
  const Index b = group / static_cast<Index>(p.groups);
  const Index g = group % static_cast<Index>(p.groups);
  const Index per_group = static_cast<Index>(p.channels / p.groups);
  Window<scalar_t, Index, kAxes, kPlain> window(p, positions, b, g, inside ? position : Index(0));

  const Index taps = static_cast<Index>(taps_of(p));
  const auto* const entries = static_cast<const scalar_t*>(columns.data) + b * columns.batch +
      static_cast<int64_t>(g) * per_group * taps * columns.row + position * columns.position;
  const Index tap_stride = static_cast<Index>(columns.row);
  const auto* const image = static_cast<const scalar_t*>(input.data) + b * input.batch + g * per_group * input.channel;
  const Index channel_stride = static_cast<Index>(input.channel);
  const int64_t pixels = pixels_of(p);
  [[maybe_unused]] const int64_t first_sum = static_cast<int64_t>(group) * per_group * pixels;
  [[maybe_unused]] CornerOffsets<kAxes, Index> offsets;
  [[maybe_unused]] CornerOffsets<kAxes, Index> sum_offsets;
  Index pitch = 1;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    offsets.step[a] = static_cast<Index>(input.axis[kFirst + a]);
    sum_offsets.step[a] = pitch;
    pitch *= static_cast<Index>(p.axis[kFirst + a].size);
  }

  // For each dot its multiples by the distance along every axis, then the dot itself.
  constexpr int kMultiples = kPlain ? 1 : kAxes + 1;
  T dots[kMaxAxes][kMultiples] = {};
  const auto is_wanted = [&](int e) {
    return e + 1 == kMultiples || (terms.multiples > 1 && kFirst + e >= p.first_axis());
  };
  // Adds up the sums of all threads that share a position, and stores them in entry `entry` of the group.
  const auto finish = [&](int64_t entry) {
    __shared__ T parts[kMaxAxes][kParts][kLanes];
    int64_t multiple = 0;
#pragma unroll
    for (int e = 0; e < kMultiples; ++e) {
      if (!is_wanted(e)) {
        continue;
      }
#pragma unroll
      for (int d = 0; d < kMaxAxes; ++d) {
        if (d < terms.dots) {
          parts[d][threadIdx.y][threadIdx.x] = dots[d][e];
        }
        dots[d][e] = 0;
      }
      __syncthreads();
      if (static_cast<int>(threadIdx.y) < terms.dots && inside) {
        T sum = 0;
        for (int part = 0; part < kParts; ++part) {
          sum += parts[threadIdx.y][part][threadIdx.x];
        }
        const int64_t number =
            (static_cast<int64_t>(group) * positions_per_group(p) + entry) * terms.dots + threadIdx.y;
        const int64_t at = (number * terms.multiples + multiple) * length + position;
        if (positions.is_float) {
          static_cast<float*>(result)[at] = static_cast<float>(sum);
        } else {
          static_cast<scalar_t*>(result)[at] = static_cast<scalar_t>(sum);
        }
      }
      __syncthreads();
      ++multiple;
    }
  };

  window.for_taps([&](Index tap) {
    if (inside && window.finite) {
      const unsigned in_image = window.corners_inside();
      [[maybe_unused]] const Index corner = offsets.at(window.neighbour);
      [[maybe_unused]] const Index sum_corner = sum_offsets.at(window.neighbour);
      [[maybe_unused]] CornerWeights<kAxes, T> w;
      if constexpr (kSplat) {
        w = window.weights(terms.splat);
      }
      [[maybe_unused]] T products[kCorners] = {};
#pragma unroll(kSplat ? 1 : 2)
      for (Index c = threadIdx.y; c < per_group; c += kParts) {
        const T entry = load(entries + (c * taps + tap) * tap_stride);
        if constexpr (kSplat) {
          const auto add = [&](const auto& adder, auto* data) {
            auto* const first = data + (first_sum + c * pixels + sum_corner) * adder.kStride;
#pragma unroll
            for (int k = 0; k < kCorners; ++k) {
              if ((in_image & 1u << k) != 0) {
                adder.add(first + sum_offsets[k] * adder.kStride, w.corner[k] * entry);
              }
            }
          };
          if (sums.largest != nullptr) {
            add(FixedPoint<T>(sums), static_cast<unsigned long long*>(sums.data));
          } else {
            add(FloatingPoint<T>(), static_cast<T*>(sums.data));
          }
        }
        if constexpr (kDot) {
          const scalar_t* const first = image + c * channel_stride + corner;
          T partial[kCorners];
#pragma unroll
          for (int k = 0; k < kCorners; ++k) {
            partial[k] = (in_image & 1u << k) != 0 ? load(first + offsets[k]) : T(0);
          }
          differentiate(window.fraction, window.direction, partial);
          // Multiplies also by the zeros outside the image: entries that aren't finite must show.
#pragma unroll
          for (int q = 0; q < kCorners; ++q) {
            products[q] += entry * partial[q];
          }
        }
      }
      if constexpr (kDot) {
        T distance[kAxes];
        window.distances(distance);
#pragma unroll
        for (int d = 0; d < kMaxAxes; ++d) {
          if (d < terms.dots) {
            T sum = 0;
#pragma unroll
            for (int q = 0; q < kCorners; ++q) {
              if (terms.dot[d].count[q] != 0) {
                sum += term_factor(terms.dot[d], q, distance) * products[q];
              }
            }
#pragma unroll
            for (int e = 0; e < kMultiples; ++e) {
              if (is_wanted(e)) {
                dots[d][e] += e + 1 < kMultiples ? distance[e] * sum : sum;
              }
            }
          }
        }
      }
    } else if (kDot && per_group > 0) {
#pragma unroll
      for (auto& multiples : dots) {
#pragma unroll
        for (auto& dot : multiples) {
          dot = std::numeric_limits<T>::quiet_NaN();
        }
      }
    }
    if constexpr (kDot) {
      if (per_tap(window.source)) {
        finish(tap);
      }
    }
  });
  if constexpr (kDot) {
    if (!per_tap(window.source)) {
      finish(0);
    }
  }
}

}  // namespace

void launch_reduce(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ColumnsView& columns,
    const PositionsView& positions,
    const Term* splat,
    const Sums& sums,
    const ImageView& input,
    const Term* dot_terms,
    int dots,
    int multiples,
    void* result,
    cudaStream_t stream) {
  Terms terms = {};
  terms.multiples = multiples;
  if (splat != nullptr) {
    terms.splat = *splat;
  }
  terms.dots = dots;
  for (int d = 0; d < dots; ++d) {
    terms.dot[d] = dot_terms[d];
  }
  const int64_t position_blocks = ceil_div<int64_t>(positions_of(p), kLanes);
  const auto grid = grid_of(p.batch * p.groups * position_blocks);
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_general(p, wide, [&](auto index, auto axes, auto plain) {
      using Index = decltype(index);
      constexpr int kAxes = decltype(axes)::value;
      constexpr bool kPlain = decltype(plain)::value;
      const auto kernel = splat == nullptr ? counted<reduce_kernel<scalar_t, Index, kAxes, kPlain, false, true>>()
          : dots == 0                      ? counted<reduce_kernel<scalar_t, Index, kAxes, kPlain, true, false>>()
                                           : counted<reduce_kernel<scalar_t, Index, kAxes, kPlain, true, true>>();
      kernel.launch()<<<grid, dim3(kLanes, kParts), 0, stream>>>(
          p, columns, positions, sums, input, terms, result, static_cast<Index>(position_blocks));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
