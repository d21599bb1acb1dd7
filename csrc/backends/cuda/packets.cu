// SPDX-License-Identifier: MIT
// sample: columns from an image copied into packets.

// NOTE [ Packet kernel ]
// For three axes, if the image is small compared to the columns, and for taps with parameters of their own, which would
// have to be read twice to find the box of NOTE [ Sample kernels ]. The whole image is copied into packets
// (launch_pack), and taps read from there through the L1 cache. A thread owns an output position and kPackets packets
// of channels. The copy has a border of zeros, so there are no masks: a tap without a neighbour along an axis reads the
// border.

#include <algorithm>
#include <limits>

#include "packets.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;

struct Shape {
  FastAxis axis[kMaxAxes];
  int per_group;
  int groups;
  int chunks;  // of a group's channels
  int position_blocks;
  int packets_in_group;
};

template <class scalar_t, int kPackets, int kAxes, Source kSource, bool kZeros>
__global__ void __launch_bounds__(kThreads, 3) sample_packets_kernel(
    const UnfoldParams p,
    const Shape shape,
    const uint4* __restrict__ packets,  // [B, G, packets per group, packed_plane]
    const PositionsView positions,      // [B, channels, *out]
    scalar_t* __restrict__ columns) {   // [B, C, taps, L]
  constexpr int kElements = kPacket<scalar_t>;
  constexpr int kFirst = kMaxAxes - kAxes;
  constexpr bool kMap = kSource == Source::kAffine;
  constexpr bool kEachTap = !by_axis(kSource);  // each tap is located separately
  const int block = static_cast<int>(blockIdx.x % shape.position_blocks);
  const int chunk = static_cast<int>(blockIdx.x / shape.position_blocks % shape.chunks);
  const int group = static_cast<int>(blockIdx.x / shape.position_blocks / shape.chunks);  // among the batch's B * G
  const int b = group / shape.groups;
  const int g = group % shape.groups;
  const auto& depth = shape.axis[0];
  const auto& height = shape.axis[1];
  const auto& width = shape.axis[2];
  const int position = block * kThreads + static_cast<int>(threadIdx.x);
  const int64_t length = static_cast<int64_t>(depth.out_size) * height.out_size * width.out_size;
  if (position >= length) {
    return;
  }
  const int index[kMaxAxes] = {
      position / width.out_size / height.out_size, position / width.out_size % height.out_size,
      position % width.out_size};
  int64_t at = b * positions.batch;
  int window[kMaxAxes];
  float parameter[kMaxAxes];
  bool finite = true;
#pragma unroll
  for (int a = kFirst; a < kMaxAxes; ++a) {
    at += index[a] * positions.axis[a];
    window[a] = shape.axis[a].pixel(index[a]);
  }
  int64_t of_tap = at + parameter_channel(p, g, 0, kFirst) * positions.channel;
  const int64_t shared = p.parameters == 1 ? 0 : positions.channel;
  [[maybe_unused]] float map[kAxes][kAxes + 1];
  if constexpr (kMap) {
    finite = load_map<scalar_t>(p, positions, at, g, map);
  }
  const auto load = [&] {
    finite = true;
    int64_t of_axis = of_tap;
#pragma unroll
    for (int a = kFirst; a < kMaxAxes; ++a) {
      parameter[a] = load_position<scalar_t>(p, positions, of_axis, a);
      finite = finite && is_finite(parameter[a]);
      of_axis += a < p.first_axis() ? 0 : shared;
    }
    of_tap += p.parameters * positions.channel;
  };
  if (!kEachTap) {
    load();
  }

  const int pitch = static_cast<int>(packed_row(p));
  const int layer = static_cast<int>(packed_layer(p));
  const int64_t plane = packed_plane(p);
  const int first_packet = chunk * kPackets;
  const int here = min(kPackets, shape.packets_in_group - first_packet);  // the thread's packets
  const int channels = min(kPackets * kElements, shape.per_group - first_packet * kElements);
  // The first pixel of the image.
  const uint4* const image = packets + (static_cast<int64_t>(group) * shape.packets_in_group + first_packet) * plane +
      (kAxes == 3 ? layer : 0) * static_cast<int>(kBorderLow) + (pitch + 1) * static_cast<int>(kBorderLow);
  const int64_t channel_stride = length * (depth.kernel * height.kernel * width.kernel);
  scalar_t* to =
      columns + (static_cast<int64_t>(group) * shape.per_group + first_packet * kElements) * channel_stride + position;

  const auto locate = [&](int a, int tap) {
    return shape.axis[a].template neighbours_of<kZeros>(kSource, tap, window[a], parameter[a]);
  };
  Neighbours<float, int> z = {0, 0.f, 0.f};
  Neighbours<float, int> y = {0, 0.f, 0.f};
  for (int l = 0; l < depth.kernel; ++l) {
    if (!kEachTap && kAxes == 3) {
      z = locate(0, l);
    }
    for (int m = 0; m < height.kernel; ++m) {
      if (!kEachTap) {
        y = locate(1, m);
      }
      for (int n = 0; n < width.kernel; ++n, to += length) {
        if (kEachTap) {
          if constexpr (kMap) {
            float distance[kAxes];
            float displaced[kAxes];
            if constexpr (kAxes == 3) {
              distance[0] = depth.distance(l);
            }
            distance[kAxes - 2] = height.distance(m);
            distance[kAxes - 1] = width.distance(n);
            displace(map, finite, distance, displaced);
#pragma unroll
            for (int a = 0; a < kAxes; ++a) {
              parameter[kFirst + a] = displaced[a];
            }
          } else {
            load();
          }
          if (kAxes == 3) {
            z = locate(0, l);
          }
          y = locate(1, m);
        }
        const auto x = locate(2, n);
        // NaN where a parameter isn't finite: the tap has no neighbours, and NaN multiplies the zeros that are read
        // instead.
        const float unit = finite ? 1.f : std::numeric_limits<float>::quiet_NaN();
        const float north = unit * (1 - y.fraction);
        const float south = unit * y.fraction;
        const uint4* const first = image + (kAxes == 3 ? z.pixel * layer : 0) + y.pixel * pitch + x.pixel;
#pragma unroll
        for (int q = 0; q < kPackets; ++q) {
          if (q < here) {
            float sum[kElements] = {};
#pragma unroll
            for (int side = 0; side < (kAxes == 3 ? 2 : 1); ++side) {
              const float share = kAxes == 2 ? 1.f : side == 0 ? 1 - z.fraction : z.fraction;
              const uint4* const corner = first + q * plane + side * layer;
              const uint4 nw = __ldg(corner);
              const uint4 ne = __ldg(corner + 1);
              const uint4 sw = __ldg(corner + pitch);
              const uint4 se = __ldg(corner + pitch + 1);
              const float w_nw = share * (north * (1 - x.fraction));
              const float w_ne = share * (north * x.fraction);
              const float w_sw = share * (south * (1 - x.fraction));
              const float w_se = share * (south * x.fraction);
#pragma unroll
              for (int k = 0; k < kElements; ++k) {
                sum[k] += w_nw * element<scalar_t>(nw, k) + w_ne * element<scalar_t>(ne, k) +
                    w_sw * element<scalar_t>(sw, k) + w_se * element<scalar_t>(se, k);
              }
            }
            scalar_t* out = to + q * kElements * channel_stride;
#pragma unroll
            for (int k = 0; k < kElements; ++k, out += channel_stride) {
              if (q * kElements + k < channels) {
                stream_out(out, sum[k]);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace

void launch_sample_packets(
    const UnfoldParams& p,
    c10::ScalarType type,
    const void* packets,
    const PositionsView& positions,
    void* columns,
    cudaStream_t stream) {
  Shape shape = {{fast_axis(p, 0), fast_axis(p, 1), fast_axis(p, 2)}, static_cast<int>(p.channels / p.groups)};
  shape.groups = static_cast<int>(p.groups);
  shape.position_blocks = static_cast<int>(ceil_div<int64_t>(positions_of(p), kThreads));
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    shape.packets_in_group = static_cast<int>(packets_per_group<scalar_t>(p));
    const auto launch = [&](auto packets_of_thread, auto axes) {
      constexpr int kPackets = decltype(packets_of_thread)::value;
      constexpr int kAxes = decltype(axes)::value;
      shape.chunks = ceil_div(shape.packets_in_group, kPackets);
      const auto grid = grid_of(p.batch * p.groups * shape.chunks * shape.position_blocks);
      dispatch_fast(p, [&](auto source, auto zeros) {
        constexpr Source kSource = decltype(source)::value;
        if constexpr (kAxes == 3 || kSource != Source::kRates) {  // sample_tile_kernel takes the rest
          const auto kernel =
              counted<sample_packets_kernel<scalar_t, kPackets, kAxes, kSource, decltype(zeros)::value>>();
          kernel.launch()<<<grid, kThreads, 0, stream>>>(
              p, shape, static_cast<const uint4*>(packets), positions, static_cast<scalar_t*>(columns));
        }
      });
    };
    const auto for_axes = [&](auto packets_of_thread) {
      if (fast_axes(p) == 3) {
        launch(packets_of_thread, std::integral_constant<int, 3>());
      } else {
        launch(packets_of_thread, std::integral_constant<int, 2>());
      }
    };
    // The more packets per thread, the less often a tap's address and weights are computed and its parameters read. But
    // having enough blocks comes first.
    constexpr int64_t kEnoughBlocks = 500;
    const int64_t blocks = p.batch * p.groups * shape.position_blocks * shape.packets_in_group;
    const auto pays = [&](int64_t packets) {
      return shape.packets_in_group >= packets && (blocks >= packets * kEnoughBlocks || forced.fast);
    };
    if (pays(4)) {
      for_axes(std::integral_constant<int, 4>());
    } else if (pays(2)) {
      for_axes(std::integral_constant<int, 2>());
    } else {
      for_axes(std::integral_constant<int, 1>());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
