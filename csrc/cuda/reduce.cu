// SPDX-License-Identifier: MIT
// splat, dot and both at once: for any type, strides and derivative.

// NOTE [ Reduce kernel ]
// A block owns 32 output positions of a group and all its channels: thread (x, y) has position x and every kParts-th
// channel from y on. An entry of columns is read once, by neighbouring threads for neighbouring positions, and used for
// both results.
// - dot: for each tap a thread sums columns * corner over its channels, separately for the four corners, which turns
//   every wanted derivative into four products per tap and not per channel. The parts of a block are added in order, so
//   the result is the same in every run.
// - splat: each corner's share is added to `sums` atomically. Floating point sums depend on the order; where that must
//   not be, sums are fixed point (NOTE [ Fixed point ]).

#include "fixed_point.h"

namespace ddu::cuda {

namespace {

constexpr int kLanes = 32;
constexpr int kParts = 8;
constexpr int kMaxDots = 2;

struct Terms {
  Term splat;
  Term dot[kMaxDots];
};

template <class scalar_t, class Index, bool kSplat, int kDots>
__global__ void __launch_bounds__(kLanes* kParts) reduce_kernel(
    const UnfoldParams p,
    const ColumnsView columns,  // [B, C * kH * kW, L]
    const MapView map,          // [B, G * rates, H_out, W_out]
    const Sums sums,            // [B, C, H, W]
    const ImageView input,      // [B, C, H, W]
    const Terms terms,
    void* __restrict__ result,  // [B, G, kDots, H_out, W_out]
    const Index position_blocks) {
  using T = Compute<scalar_t>;
  const Index positions = static_cast<Index>(p.h.out_size * p.w.out_size);
  const Index position = static_cast<Index>(blockIdx.x) % position_blocks * kLanes + threadIdx.x;
  const Index group = static_cast<Index>(blockIdx.x) / position_blocks;  // of the batch's B * G
  const bool inside = position < positions;
  const Index b = group / static_cast<Index>(p.groups);
  const Index g = group % static_cast<Index>(p.groups);
  const Index per_group = static_cast<Index>(p.channels / p.groups);
  Window<T> window = {};
  if (inside) {
    window = load_window<scalar_t>(
        p, map, b, g, position / static_cast<Index>(p.w.out_size), position % static_cast<Index>(p.w.out_size));
  }

  T dots[kMaxDots] = {0, 0};
  if (window.finite) {
    const Index taps = static_cast<Index>(p.h.kernel * p.w.kernel);
    const Index height = static_cast<Index>(p.h.size);
    const Index width = static_cast<Index>(p.w.size);
    const auto* const entries = static_cast<const scalar_t*>(columns.data) + b * columns.batch +
        static_cast<int64_t>(g) * per_group * taps * columns.row + position * columns.position;
    const Index tap_stride = static_cast<Index>(columns.row);
    const auto* const image =
        static_cast<const scalar_t*>(input.data) + b * input.batch + g * per_group * input.channel;
    const Index channel_stride = static_cast<Index>(input.channel);
    const Index row_stride = static_cast<Index>(input.row);
    const Index column_stride = static_cast<Index>(input.column);
    [[maybe_unused]] const int64_t first_sum = static_cast<int64_t>(group) * per_group * height * width;

    for (int64_t m = 0; m < p.h.kernel; ++m) {
      const auto y = tap_neighbours(p.h, p.aligned, window.centre_h, window.rate_h, m);
      const auto wy = axis_weights(y.fraction, tap_slope<T>(p.h, m));
      const bool north = y.pixel >= 0;
      const bool south = y.pixel >= -1 && y.pixel + 1 < p.h.size;
      for (int64_t n = 0; n < p.w.kernel; ++n) {
        const auto x = tap_neighbours(p.w, p.aligned, window.centre_w, window.rate_w, n);
        const auto wx = axis_weights(x.fraction, tap_slope<T>(p.w, n));
        const bool west = x.pixel >= 0;
        const bool east = x.pixel >= -1 && x.pixel + 1 < p.w.size;
        const Index tap = static_cast<Index>(m * p.w.kernel + n);
        [[maybe_unused]] const Index nw =
            static_cast<Index>(y.pixel) * row_stride + static_cast<Index>(x.pixel) * column_stride;
        [[maybe_unused]] const Index sum_nw = static_cast<Index>(y.pixel) * width + static_cast<Index>(x.pixel);
        [[maybe_unused]] CornerWeights<T> w;
        if constexpr (kSplat) {
          w = corner_weights(wy, wx, terms.splat);
        }
        [[maybe_unused]] CornerWeights<T> products = {0, 0, 0, 0};
        for (Index c = threadIdx.y; c < per_group; c += kParts) {
          const T entry = load(entries + (c * taps + tap) * tap_stride);
          if constexpr (kSplat) {
            const auto add = [&](const auto& adder, auto* data) {
              auto* const corner = data + (first_sum + c * height * width + sum_nw) * adder.kStride;
              if (north && west) adder.add(corner, w.nw * entry);
              if (north && east) adder.add(corner + adder.kStride, w.ne * entry);
              if (south && west) adder.add(corner + width * adder.kStride, w.sw * entry);
              if (south && east) adder.add(corner + (width + 1) * adder.kStride, w.se * entry);
            };
            if (sums.largest != nullptr) {
              add(FixedPoint<T>(sums), static_cast<unsigned long long*>(sums.data));
            } else {
              add(FloatingPoint<T>(), static_cast<T*>(sums.data));
            }
          }
          if constexpr (kDots > 0) {
            const scalar_t* const corner = image + c * channel_stride + nw;
            // Zero outside of the image, and multiplied: an entry that is not finite shows.
            products.nw += entry * (north && west ? load(corner) : T(0));
            products.ne += entry * (north && east ? load(corner + column_stride) : T(0));
            products.sw += entry * (south && west ? load(corner + row_stride) : T(0));
            products.se += entry * (south && east ? load(corner + row_stride + column_stride) : T(0));
          }
        }
#pragma unroll
        for (int d = 0; d < kDots; ++d) {
          const auto by_rate = corner_weights(wy, wx, terms.dot[d]);
          dots[d] +=
              by_rate.nw * products.nw + by_rate.ne * products.ne + by_rate.sw * products.sw + by_rate.se * products.se;
        }
      }
    }
  } else if (per_group > 0) {
    dots[0] = dots[1] = std::numeric_limits<T>::quiet_NaN();
  }

  if constexpr (kDots > 0) {
    __shared__ T parts[kDots][kParts][kLanes];
#pragma unroll
    for (int d = 0; d < kDots; ++d) {
      parts[d][threadIdx.y][threadIdx.x] = dots[d];
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.y) < kDots && inside) {
      T sum = 0;
      for (int part = 0; part < kParts; ++part) {
        sum += parts[threadIdx.y][part][threadIdx.x];
      }
      const int64_t at = (static_cast<int64_t>(group) * kDots + threadIdx.y) * positions + position;
      if (map.is_float) {
        static_cast<float*>(result)[at] = static_cast<float>(sum);
      } else {
        static_cast<scalar_t*>(result)[at] = static_cast<scalar_t>(sum);
      }
    }
  }
}

}  // namespace

void launch_reduce(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ColumnsView& columns,
    const MapView& map,
    const Term* splat,
    const Sums& sums,
    const ImageView& input,
    const Term* dot_terms,
    int dots,
    void* result,
    cudaStream_t stream) {
  Terms terms = {};
  if (splat != nullptr) {
    terms.splat = *splat;
  }
  for (int d = 0; d < dots; ++d) {
    terms.dot[d] = dot_terms[d];
  }
  const int64_t position_blocks = ceil_div<int64_t>(p.h.out_size * p.w.out_size, kLanes);
  const auto grid = grid_of(p.batch * p.groups * position_blocks);
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_index(wide, [&](auto index) {
      using Index = decltype(index);
      const auto kernel = splat == nullptr ? (dots == 1 ? counted<reduce_kernel<scalar_t, Index, false, 1>>()
                                                        : counted<reduce_kernel<scalar_t, Index, false, 2>>())
          : dots == 0                      ? counted<reduce_kernel<scalar_t, Index, true, 0>>()
          : dots == 1                      ? counted<reduce_kernel<scalar_t, Index, true, 1>>()
                                           : counted<reduce_kernel<scalar_t, Index, true, 2>>();
      kernel.launch()<<<grid, dim3(kLanes, kParts), 0, stream>>>(
          p, columns, map, sums, input, terms, result, static_cast<Index>(position_blocks));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
