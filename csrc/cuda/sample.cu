// SPDX-License-Identifier: MIT
// sample: columns from an image.

// NOTE [ Sample kernels ]
// A thread owns an output position and, of its columns, all taps of some channels. What a tap needs besides the channel
// (address, weights) is computed once and used for all of them: taps are the outer loop, channels the inner one.
// Neighbouring threads own neighbouring positions of an output row, so they write neighbouring entries of columns and
// read neighbouring pixels wherever the map is smooth. Columns are written once and not read here, so they are stored
// past the caches, which are left to the image.
//
// sample_kernel does everything: any type, strides and derivative. sample_packets_kernel does order 0, from packets
// (NOTE [ Packets ]), in blocks of 2-D tiles, whose windows overlap more than those of as many positions in a row.

#include "packets.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;

// Channels of a thread.
constexpr int kChannels = 8;

template <class scalar_t, class Index>
__global__ void __launch_bounds__(kThreads) sample_kernel(
    const UnfoldParams p,
    const ImageView input,           // [B, C, H, W]
    const MapView map,               // [B, G * rates, H_out, W_out]
    scalar_t* __restrict__ columns,  // [B, C, kH, kW, H_out, W_out]
    const Index chunks,              // of the channels of a group
    const Index position_blocks) {
  using T = Compute<scalar_t>;
  const auto block = static_cast<Index>(blockIdx.x);
  const Index positions = static_cast<Index>(p.h.out_size * p.w.out_size);
  const Index position = block % position_blocks * kThreads + threadIdx.x;
  const Index chunk = block / position_blocks % chunks;
  const Index group = block / position_blocks / chunks;  // of the batch's B * G
  if (position >= positions) {
    return;
  }
  const Index b = group / static_cast<Index>(p.groups);
  const Index g = group % static_cast<Index>(p.groups);
  const auto window = load_window<scalar_t>(
      p, map, b, g, position / static_cast<Index>(p.w.out_size), position % static_cast<Index>(p.w.out_size));

  const Index per_group = static_cast<Index>(p.channels / p.groups);
  const Index first = chunk * kChannels;
  const Index last = min(first + static_cast<Index>(kChannels), per_group);
  const Index taps = static_cast<Index>(p.h.kernel * p.w.kernel);
  const Index row_stride = static_cast<Index>(input.row);
  const Index column_stride = static_cast<Index>(input.column);
  const Index channel_stride = static_cast<Index>(input.channel);
  const auto* const image = static_cast<const scalar_t*>(input.data) + b * input.batch + g * per_group * input.channel;
  scalar_t* const out = columns + group * per_group * taps * positions + position;

  for (int64_t m = 0; m < p.h.kernel; ++m) {
    const auto y = tap_neighbours(p.h, p.aligned, window.centre_h, window.rate_h, m);
    for (int64_t n = 0; n < p.w.kernel; ++n) {
      const auto x = tap_neighbours(p.w, p.aligned, window.centre_w, window.rate_w, n);
      auto w = corner_weights(
          axis_weights(y.fraction, tap_slope<T>(p.h, m)), axis_weights(x.fraction, tap_slope<T>(p.w, n)), p.term);
      if (!window.finite) {  // its taps have no neighbours: NaN times the zeros that are read instead
        w.nw = w.ne = w.sw = w.se = std::numeric_limits<T>::quiet_NaN();
      }
      const bool north = y.pixel >= 0;
      const bool south = y.pixel >= -1 && y.pixel + 1 < p.h.size;
      const bool west = x.pixel >= 0;
      const bool east = x.pixel >= -1 && x.pixel + 1 < p.w.size;
      const Index nw = static_cast<Index>(y.pixel) * row_stride + static_cast<Index>(x.pixel) * column_stride;
      const Index tap = static_cast<Index>(m * p.w.kernel + n);
#pragma unroll 4
      for (Index c = first; c < last; ++c) {
        const scalar_t* const corner = image + c * channel_stride + nw;
        const T value_nw = north && west ? load(corner) : T(0);
        const T value_ne = north && east ? load(corner + column_stride) : T(0);
        const T value_sw = south && west ? load(corner + row_stride) : T(0);
        const T value_se = south && east ? load(corner + row_stride + column_stride) : T(0);
        out[(c * taps + tap) * positions] =
            static_cast<scalar_t>(w.nw * value_nw + w.ne * value_ne + w.sw * value_sw + w.se * value_se);
      }
    }
  }
}

// Past the caches.
template <class scalar_t>
__device__ __forceinline__ void stream_out(scalar_t* p, float value) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    __stcs(p, value);
  } else {
    const scalar_t rounded = static_cast<scalar_t>(value);
    __stcs(reinterpret_cast<unsigned short*>(p), rounded.x);
  }
}

// What sample_packets_kernel knows of the problem.
struct Shape {
  FastAxis h, w;
  int per_group;
  int packets_in_group;
  int chunks;      // of packets_in_group
  int tiles;       // of the output grid
  int tiles_w;     // in a row of tiles
  int tile_shift;  // a tile is 2^tile_shift positions wide, or kLinear
};

// Tiles that are as many positions in a row as a block has threads, from one output row to the next.
constexpr int kLinear = -1;

// Stores the channels [0, here) of a packet's sample.
template <class scalar_t, class Index, bool kAll>
__device__ __forceinline__ void store_sample(
    const CornerWeights<float>& w,
    const uint4& nw,
    const uint4& ne,
    const uint4& sw,
    const uint4& se,
    scalar_t* to,
    Index channel_stride,
    int here) {
#pragma unroll
  for (int k = 0; k < kPacket<scalar_t>; ++k) {
    const float value = w.nw * element<scalar_t>(nw, k) + w.ne * element<scalar_t>(ne, k) +
        w.sw * element<scalar_t>(sw, k) + w.se * element<scalar_t>(se, k);
    if (kAll || k < here) {
      stream_out(to + k * channel_stride, value);
    }
  }
}

// A thread has kPackets packets.
template <class scalar_t, class Index, int kPackets>
__global__ void __launch_bounds__(kThreads, kPackets == 1 ? 5 : 4) sample_packets_kernel(
    const UnfoldParams p,
    const Shape shape,
    const uint4* __restrict__ packets,  // [B, G, packets per group, H + 3, W + 3]
    const MapView map,                  // [B, G * rates, H_out, W_out]
    scalar_t* __restrict__ columns) {   // [B, C, kH, kW, H_out, W_out]
  constexpr int kElements = kPacket<scalar_t>;
  const unsigned tile = blockIdx.x % shape.tiles;
  const int chunk = static_cast<int>(blockIdx.x / shape.tiles % shape.chunks);
  const Index group = static_cast<Index>(blockIdx.x / shape.tiles / shape.chunks);  // of the batch's B * G
  int i, j;
  if (shape.tile_shift == kLinear) {
    const int position = tile * kThreads + threadIdx.x;
    i = position / shape.w.out_size;
    j = position % shape.w.out_size;
  } else {
    i = (tile / shape.tiles_w * (kThreads >> shape.tile_shift)) + (threadIdx.x >> shape.tile_shift);
    j = (tile % shape.tiles_w << shape.tile_shift) + (threadIdx.x & ((1 << shape.tile_shift) - 1));
  }
  if (i >= shape.h.out_size || j >= shape.w.out_size) {
    return;
  }
  const Index groups = static_cast<Index>(p.groups);
  const auto window = load_window<scalar_t>(p, map, group / groups, group % groups, i, j);
  const int centre_h = shape.h.centre(i);
  const int centre_w = shape.w.centre(j);

  const int first = chunk * kPackets;
  const Index positions = static_cast<Index>(shape.h.out_size) * shape.w.out_size;
  const Index channel_stride = positions * (shape.h.kernel * shape.w.kernel);
  const int pitch = shape.w.size + static_cast<int>(padded(0));
  const Index plane = static_cast<Index>(shape.h.size + static_cast<int>(padded(0))) * pitch;
  const uint4* const image = packets + (group * shape.packets_in_group + first) * plane;
  scalar_t* out = columns + (group * shape.per_group + first * kElements) * channel_stride +
      static_cast<Index>(i) * shape.w.out_size + j;
  const int here = shape.per_group - first * kElements;  // channels
  const bool all = here >= kPackets * kElements;

  for (int m = 0; m < shape.h.kernel; ++m) {
    const auto y = shape.h.neighbours_of(m, centre_h, window.rate_h);
    const auto wy = axis_weights(y.fraction, 0.f);
    const uint4* const row = image + static_cast<Index>(y.pixel + static_cast<int>(kBorderLow)) * pitch + kBorderLow;
    for (int n = 0; n < shape.w.kernel; ++n, out += positions) {
      const auto x = shape.w.neighbours_of(n, centre_w, window.rate_w);
      const auto wx = axis_weights(x.fraction, 0.f);
      CornerWeights<float> w = {
          wy.low[0] * wx.low[0], wy.low[0] * wx.high[0], wy.high[0] * wx.low[0], wy.high[0] * wx.high[0]};
      if (!window.finite) {  // its taps have no neighbours: NaN times the zeros of the border
        w.nw = w.ne = w.sw = w.se = std::numeric_limits<float>::quiet_NaN();
      }
      const uint4* const corner = row + x.pixel;
      if (all) {
#pragma unroll
        for (int q = 0; q < kPackets; ++q) {
          const uint4* const at = corner + q * plane;
          const uint4 nw = __ldg(at);
          const uint4 ne = __ldg(at + 1);
          const uint4 sw = __ldg(at + pitch);
          const uint4 se = __ldg(at + pitch + 1);
          store_sample<scalar_t, Index, true>(
              w, nw, ne, sw, se, out + q * kElements * channel_stride, channel_stride, kElements);
        }
      } else {
        for (int q = 0; q * kElements < here; ++q) {
          const uint4* const at = corner + q * plane;
          store_sample<scalar_t, Index, false>(
              w, __ldg(at), __ldg(at + 1), __ldg(at + pitch), __ldg(at + pitch + 1),
              out + q * kElements * channel_stride, channel_stride, here - q * kElements);
        }
      }
    }
  }
}

// Tiles 32 positions wide where they fit a row of the output: then a warp writes whole lines of memory, and windows of
// neighbouring rows read the same pixels. Else as many positions in a row: then it writes whole lines all the same.
void set_tiles(Shape& shape) {
  constexpr int kShift = 5;
  if (shape.w.out_size % (1 << kShift) == 0 && shape.h.out_size % (kThreads >> kShift) == 0) {
    shape.tile_shift = kShift;
    shape.tiles_w = shape.w.out_size >> kShift;
    shape.tiles = shape.tiles_w * (shape.h.out_size / (kThreads >> kShift));
  } else {
    shape.tile_shift = kLinear;
    shape.tiles_w = 1;
    shape.tiles = ceil_div(shape.h.out_size * shape.w.out_size, kThreads);
  }
}

}  // namespace

void launch_sample(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ImageView& input,
    const MapView& map,
    void* columns,
    cudaStream_t stream) {
  const int64_t chunks = ceil_div<int64_t>(p.channels / p.groups, kChannels);
  const int64_t position_blocks = ceil_div<int64_t>(p.h.out_size * p.w.out_size, kThreads);
  const auto grid = grid_of(p.batch * p.groups * chunks * position_blocks);
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_index(wide, [&](auto index) {
      using Index = decltype(index);
      sample_kernel<scalar_t, Index><<<grid, kThreads, 0, stream>>>(
          p, input, map, static_cast<scalar_t*>(columns), static_cast<Index>(chunks),
          static_cast<Index>(position_blocks));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_sample_packets(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const void* packets,
    const MapView& map,
    void* columns,
    cudaStream_t stream) {
  Shape shape = {fast_axis(p.h, p.aligned), fast_axis(p.w, p.aligned), static_cast<int>(p.channels / p.groups)};
  set_tiles(shape);
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    // The more packets to a thread, the less often a tap's address and weights are computed; but enough blocks first.
    constexpr int kMost = sizeof(scalar_t) == 4 ? 1 : 2;
    constexpr int64_t kEnoughBlocks = 1000;
    shape.packets_in_group = static_cast<int>(packets_per_group<scalar_t>(p));
    const auto launch = [&](auto packets_of_thread) {
      constexpr int kPackets = decltype(packets_of_thread)::value;
      shape.chunks = ceil_div(shape.packets_in_group, kPackets);
      const auto grid = grid_of(p.batch * p.groups * shape.chunks * shape.tiles);
      dispatch_index(wide, [&](auto index) {
        sample_packets_kernel<scalar_t, decltype(index), kPackets><<<grid, kThreads, 0, stream>>>(
            p, shape, static_cast<const uint4*>(packets), map, static_cast<scalar_t*>(columns));
      });
    };
    const int64_t blocks = p.batch * p.groups * shape.tiles * shape.packets_in_group;  // with a packet to a thread
    if (blocks >= kMost * kEnoughBlocks) {
      launch(std::integral_constant<int, kMost>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
