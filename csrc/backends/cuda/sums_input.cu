// SPDX-License-Identifier: MIT
// The sums of windows with respect to the input: NOTE [ Additions ].

#include <algorithm>

#include "additions.h"
#include "packets.h"
#include "sums.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kLog2Positions = 6;  // per tile
constexpr int kTilePositions = 1 << kLog2Positions;
constexpr int kSpots = 3;  // per thread
constexpr int kMostTaps = kSpots * kThreads / kTilePositions;
static_assert(kMostTaps <= 1 << (32 - kPositionBits));

// What a tap's position adds to a pixel. `source` holds the position in kPositionBits bits; the others hold the tap,
// among those that are sorted together.
struct alignas(8) Share {
  unsigned source;
  float weight;
};

struct InputShape {
  Tiles tiles;
  int packets;    // per group
  int taps;       // whose shares are sorted together
  bool one_mask;  // a group's channels all read the same one, so its factors are known before the channel is
};

template <class scalar_t, int kAxes>
__global__ void __launch_bounds__(kThreads, kAxes == 3 ? 2 : 3) sums_input_kernel(
    const __grid_constant__ Windows w,
    const __grid_constant__ SumsCall call,
    const __grid_constant__ InputShape shape) {
  constexpr int kCorners = 1 << kAxes;
  constexpr int kElements = kPacket<scalar_t>;
  const UnfoldParams& p = w.p;
  extern __shared__ float4 shared[];
  PixelLists<kAxes, kThreads, Share> lists(reinterpret_cast<char*>(shared), shape.taps * kTilePositions);

  const int thread = static_cast<int>(threadIdx.x);
  const int tiles = shape.tiles.total();
  const int64_t group = blockIdx.x / tiles;  // among the batch's B * G
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int b = static_cast<int>(group / p.groups);
  const int g = static_cast<int>(group % p.groups);
  const int64_t per_group = p.channels / p.groups;
  const int64_t per_mask = p.channels / call.mask_groups;
  const int rows = kThreads / shape.packets;
  const int row = thread / shape.packets;
  const int64_t channel = g * per_group + thread % shape.packets * kElements;

  const auto* const query =
      static_cast<const scalar_t*>(call.query) + static_cast<int64_t>(b) * w.length * p.channels + channel;
  float* const sums = call.by_input + b * pixels_of(p) * p.channels + channel;
  const auto* const weight =
      call.weight == nullptr ? nullptr : static_cast<const scalar_t*>(call.weight) + b * call.weight_batch + channel;
  const auto* const masks =
      call.mask.data == nullptr ? nullptr : static_cast<const scalar_t*>(call.mask.data) + b * call.mask.batch;
  const auto* const mask =
      masks == nullptr || shape.one_mask ? nullptr : masks + channel / per_mask * w.taps * call.mask.channel;

  int index[kAxes];
  const int position = position_in_tile<kAxes>(w, shape.tiles, tile, thread % kTilePositions, index);
  Locator<scalar_t, kAxes> locator(w, b, index);
  if (by_axis(p.source)) {
    locator.load_parameters(g, 0);
  }
  for (int start = 0; start < w.taps; start += shape.taps) {
    const int count = min(shape.taps, w.taps - start);
    const auto tap_of = [&](int s) { return thread / kTilePositions + s * (kThreads / kTilePositions); };
    Spot<kAxes> spot[kSpots];
#pragma unroll
    for (int s = 0; s < kSpots; ++s) {
      const int t = tap_of(s);
      spot[s].inside = 0;
      if (t < count && position >= 0) {
        locator.begin(start + t);
        if (!by_axis(p.source)) {
          locator.load_parameters(g, start + t);
        }
        Neighbours<float, int> n[kAxes];
        locator.locate(n);
        AxisWeights<float> along[kAxes];
        float distance[kAxes];
        locator.distances(distance);
#pragma unroll
        for (int a = 0; a < kAxes; ++a) {
          along[a] = axis_weights(n[a].fraction, n[a].direction);
          spot[s].pixel[a] = n[a].pixel;
        }
        const auto corners = corner_weights(along, distance, p.term);
        const float factor = masks != nullptr && shape.one_mask
            ? load(
                  masks + (static_cast<int64_t>(g * per_group / per_mask) * w.taps + start + t) * call.mask.channel +
                  position * call.mask.position)
            : 1.f;
        spot[s].inside = locator.finite ? locator.corners_inside(n) : 0u;
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
          spot[s].weight[c] = factor * corners.corner[c];
        }
      }
    }
    lists.build(w, spot, [&](int s) {
      return Share{static_cast<unsigned>(position) | static_cast<unsigned>(tap_of(s)) << kPositionBits, 0.f};
    });
    if (row >= rows) {
      continue;
    }
    lists.for_pixels(row, rows, [&](int pixel, const Share* shares, int n) {
      float sum[kElements] = {};
      for (int i = 0; i < n; ++i) {
        const Share one = shares[i];
        const auto source = static_cast<int64_t>(one.source & ((1u << kPositionBits) - 1));
        const int tap = start + static_cast<int>(one.source >> kPositionBits);
        const uint4 packet = __ldg(reinterpret_cast<const uint4*>(query + source * p.channels));
        float share = one.weight;
        if (mask != nullptr) {
          share *= load(mask + tap * call.mask.channel + source * call.mask.position);
        }
        if (weight == nullptr) {
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            sum[k] = fmaf(share, element<scalar_t>(packet, k), sum[k]);
          }
        } else {
          const uint4 factors = __ldg(reinterpret_cast<const uint4*>(weight + static_cast<int64_t>(tap) * p.channels));
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            sum[k] = fmaf(share * element<scalar_t>(factors, k), element<scalar_t>(packet, k), sum[k]);
          }
        }
      }
      float* const to = sums + static_cast<int64_t>(pixel) * p.channels;
#pragma unroll
      for (int k = 0; k < kElements; k += 4) {
        add4(to + k, sum[k], sum[k + 1], sum[k + 2], sum[k + 3]);
      }
    });
  }
}

}  // namespace

void launch_sums_input(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream) {
  InputShape shape = {};
  shape.tiles = tiles_of(p, kLog2Positions);
  shape.packets = static_cast<int>(p.channels / p.groups * static_cast<int64_t>(c10::elementSize(type)) / 16);
  shape.one_mask = p.channels / call.mask_groups % (p.channels / p.groups) == 0;
  const int64_t most = p.axes == 3 ? kMostTaps * 3 / 4 : kMostTaps;
  shape.taps = static_cast<int>(ceil_div(taps_of(p), ceil_div(taps_of(p), most)));
  const auto w = windows_of(p, call.positions);
  const auto grid = grid_of(p.batch * p.groups * shape.tiles.total());
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto launch = [&](auto axes) {
      constexpr int kAxes = decltype(axes)::value;
      const auto bytes = static_cast<int>(PixelLists<kAxes, kThreads, Share>::bytes(shape.taps * kTilePositions));
      const auto kernel = counted<sums_input_kernel<scalar_t, kAxes>>();
      C10_CUDA_CHECK(cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
      kernel.launch()<<<grid, kThreads, static_cast<size_t>(bytes), stream>>>(w, call, shape);
    };
    if (p.axes == 3) {
      launch(std::integral_constant<int, 3>());
    } else {
      launch(std::integral_constant<int, 2>());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
