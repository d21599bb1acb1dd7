// SPDX-License-Identifier: MIT
// sample: columns from an image.

// NOTE [ Sample kernels ]
// A thread owns an output position and, of its columns, all taps of some channels. What a tap needs besides the channel
// (address, weights) is computed once and used for all of them: taps are the outer loop, channels the inner one.
// Neighbouring threads own neighbouring positions of an output row, so they write neighbouring entries of columns and
// read neighbouring pixels wherever the map is smooth. Columns are written once and not read here, so they are stored
// past the caches, which are left to the image.
//
// sample_kernel does everything: any type, strides and derivative. sample_tile_kernel does order 0 of float, half and
// bfloat16, in blocks of 256 positions. What the windows of a block reach (its box) is copied into shared memory first,
// as packets (NOTE [ Packets ]) with what lies beyond the image as zeros, and read from there: four loads of 16 bytes
// for a tap of 4 or 8 channels, without masks. A box that is too large even for a packet of channels is not copied:
// then the block reads the image as sample_kernel does. Only speed depends on it.

#include <algorithm>
#include <climits>

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

// What sample_tile_kernel knows of the problem.
struct Shape {
  FastAxis h, w;
  int per_group;
  int groups;
  int chunks;      // of the channels of a group
  int tiles;       // of the output grid
  int tiles_w;     // in a row of tiles
  int tile_shift;  // a tile is 2^tile_shift positions wide, or kLinear
  int capacity;    // packets that shared memory has room for
};

// Tiles that are as many positions in a row as a block has threads, from one output row to the next.
constexpr int kLinear = -1;

// The least and the largest pixel of some taps' corners along an axis. Taps without neighbours do not count.
struct Extent {
  int low, high;
};

// What a position's taps reach along an axis.
__device__ __forceinline__ Extent reach(const FastAxis& axis, int centre, float rate) {
  Extent extent = {INT_MAX, INT_MIN};
  for (int tap = 0; tap < axis.kernel; ++tap) {
    const int pixel = axis.neighbours_of(tap, centre, rate).pixel;
    if (pixel != kNoPixel) {
      extent.low = min(extent.low, pixel);
      extent.high = max(extent.high, pixel + 1);
    }
  }
  return extent;
}

// Of all threads of the block together. Two barriers.
__device__ __forceinline__ void unite(Extent& h, Extent& w) {
  __shared__ Extent extents[2];
  if (threadIdx.x < 2) {
    extents[threadIdx.x] = {INT_MAX, INT_MIN};
  }
  __syncthreads();
  const auto add = [&](Extent& all, Extent mine) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      mine.low = min(mine.low, __shfl_xor_sync(0xffffffffu, mine.low, lanes));
      mine.high = max(mine.high, __shfl_xor_sync(0xffffffffu, mine.high, lanes));
    }
    if (threadIdx.x % 32 == 0) {
      atomicMin(&all.low, mine.low);
      atomicMax(&all.high, mine.high);
    }
  };
  add(extents[0], h);
  add(extents[1], w);
  __syncthreads();
  h = extents[0];
  w = extents[1];
}

// A thread has up to kPackets packets.
template <class scalar_t, int kPackets>
__global__ void __launch_bounds__(kThreads, 4) sample_tile_kernel(
    const UnfoldParams p,
    const Shape shape,
    const ImageView input,             // [B, C, H, W]
    const MapView map,                 // [B, G * rates, H_out, W_out]
    scalar_t* __restrict__ columns) {  // [B, C, kH, kW, H_out, W_out]
  constexpr int kElements = kPacket<scalar_t>;
  extern __shared__ __align__(16) uint4 staged[];
  const int tile = static_cast<int>(blockIdx.x % shape.tiles);
  const int chunk = static_cast<int>(blockIdx.x / shape.tiles % shape.chunks);
  const int group = static_cast<int>(blockIdx.x / shape.tiles / shape.chunks);  // of the batch's B * G
  const int b = group / shape.groups;
  const int g = group % shape.groups;
  int i, j;
  if (shape.tile_shift == kLinear) {
    const int position = tile * kThreads + threadIdx.x;
    i = position / shape.w.out_size;
    j = position % shape.w.out_size;
  } else {
    i = (tile / shape.tiles_w * (kThreads >> shape.tile_shift)) + (threadIdx.x >> shape.tile_shift);
    j = (tile % shape.tiles_w << shape.tile_shift) + (threadIdx.x & ((1 << shape.tile_shift) - 1));
  }
  const bool inside = i < shape.h.out_size && j < shape.w.out_size;
  Window<float> window = {};
  window.rate_h = window.rate_w = std::numeric_limits<float>::quiet_NaN();  // beyond the edge: no neighbours
  if (inside) {
    window = load_window<scalar_t>(p, map, b, g, i, j);
  }
  const int centre_h = shape.h.centre(i);
  const int centre_w = shape.w.centre(j);
  Extent reach_h = reach(shape.h, centre_h, window.rate_h);
  Extent reach_w = reach(shape.w, centre_w, window.rate_w);
  unite(reach_h, reach_w);

  // The box, and after it zeros for taps that have no neighbours.
  const bool empty = reach_h.low > reach_h.high || reach_w.low > reach_w.high;
  const int height = empty ? 0 : reach_h.high - reach_h.low + 1;
  const int width = empty ? 2 : reach_w.high - reach_w.low + 1;
  const int64_t box = static_cast<int64_t>(height) * width;
  const int nowhere = static_cast<int>(box);
  const int plane = nowhere + width + 2;

  const int64_t positions = static_cast<int64_t>(shape.h.out_size) * shape.w.out_size;
  const int64_t channel_stride = positions * (shape.h.kernel * shape.w.kernel);
  const int first = chunk * kPackets * kElements;  // channel of the group
  const int channels = min(kPackets * kElements, shape.per_group - first);
  const auto* const image = static_cast<const scalar_t*>(input.data) + b * input.batch +
      (static_cast<int64_t>(g) * shape.per_group + first) * input.channel;
  scalar_t* const out = columns + (static_cast<int64_t>(group) * shape.per_group + first) * channel_stride +
      static_cast<int64_t>(i) * shape.w.out_size + j;

  // Calls visit(tap's entry of columns, weights, y, x) for all taps.
  const auto for_taps = [&](const auto& visit) {
    scalar_t* to = out;
    for (int m = 0; m < shape.h.kernel; ++m) {
      const auto y = shape.h.neighbours_of(m, centre_h, window.rate_h);
      const auto wy = axis_weights(y.fraction, 0.f);
      for (int n = 0; n < shape.w.kernel; ++n, to += positions) {
        const auto x = shape.w.neighbours_of(n, centre_w, window.rate_w);
        const auto wx = axis_weights(x.fraction, 0.f);
        CornerWeights<float> w = {
            wy.low[0] * wx.low[0], wy.low[0] * wx.high[0], wy.high[0] * wx.low[0], wy.high[0] * wx.high[0]};
        if (!window.finite) {  // its taps have no neighbours: NaN times the zeros that are read instead
          w.nw = w.ne = w.sw = w.se = std::numeric_limits<float>::quiet_NaN();
        }
        visit(to, w, y.pixel, x.pixel);
      }
    }
  };

  // Stages and samples kAtOnce packets, of the channels from c on.
  const auto sample = [&](int c, auto packets_at_once, auto whole) {
    constexpr int kAtOnce = decltype(packets_at_once)::value;
    constexpr bool kWhole = decltype(whole)::value;  // all channels are there
    const int here = channels - c;
    const auto* const source = image + c * input.channel;
    const unsigned inverse = 0xffffffffu / width + 1;
    for (int k = threadIdx.x; k < plane; k += kThreads) {
      const int box_row = __umulhi(k, inverse);
      const int row = reach_h.low + box_row;
      const int column = reach_w.low + k - box_row * width;
      const bool in_image = box_row < height && row >= 0 && row < shape.h.size && column >= 0 && column < shape.w.size;
      const auto* const pixel = source + row * input.row + column * input.column;
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) {
        staged[a * plane + k] = gather_packet<scalar_t>(
            pixel + a * kElements * input.channel, input.channel,
            !in_image    ? 0
                : kWhole ? kElements
                         : here - a * kElements);
      }
    }
    __syncthreads();
    if (inside) {
      for_taps([&](scalar_t* to, const CornerWeights<float>& w, int y, int x) {
        const bool exists = y != kNoPixel && x != kNoPixel;
        const uint4* const corner = staged + (exists ? (y - reach_h.low) * width + x - reach_w.low : nowhere);
        to += c * channel_stride;
#pragma unroll
        for (int a = 0; a < kAtOnce; ++a) {
          const uint4 nw = corner[a * plane];
          const uint4 ne = corner[a * plane + 1];
          const uint4 sw = corner[a * plane + width];
          const uint4 se = corner[a * plane + width + 1];
#pragma unroll
          for (int k = 0; k < kElements; ++k, to += channel_stride) {
            const float value = w.nw * element<scalar_t>(nw, k) + w.ne * element<scalar_t>(ne, k) +
                w.sw * element<scalar_t>(sw, k) + w.se * element<scalar_t>(se, k);
            if (kWhole || a * kElements + k < here) {
              stream_out(to, value);
            }
          }
        }
      });
    }
  };

  if (kPackets * (box + width + 2) <= shape.capacity && channels == kPackets * kElements) {
    sample(0, std::integral_constant<int, kPackets>(), std::true_type());
  } else if (box + width + 2 <= shape.capacity) {
    for (int c = 0; c < channels; c += kElements) {
      sample(c, std::integral_constant<int, 1>(), std::false_type());
      __syncthreads();
    }
  } else if (inside) {
    for_taps([&](scalar_t* to, const CornerWeights<float>& w, int y, int x) {
      const bool north = y >= 0;
      const bool south = y >= -1 && y + 1 < shape.h.size;
      const bool west = x >= 0;
      const bool east = x >= -1 && x + 1 < shape.w.size;
      const scalar_t* corner = image + y * input.row + x * input.column;
#pragma unroll 2
      for (int k = 0; k < channels; ++k, corner += input.channel, to += channel_stride) {
        const float value_nw = north && west ? load(corner) : 0.f;
        const float value_ne = north && east ? load(corner + input.column) : 0.f;
        const float value_sw = south && west ? load(corner + input.row) : 0.f;
        const float value_se = south && east ? load(corner + input.row + input.column) : 0.f;
        stream_out(to, w.nw * value_nw + w.ne * value_ne + w.sw * value_sw + w.se * value_se);
      }
    });
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

// Packets of the box of a tile whose rates are up to kUsualRate, with its zeros.
int64_t usual_box(const UnfoldParams& p, const Shape& shape) {
  constexpr int64_t kUsualRate = 3;
  const auto extent = [](const Axis<int64_t>& axis, int64_t outputs) {
    const int64_t reach =
        (std::min(outputs, axis.out_size) - 1) * axis.stride + kUsualRate * axis.dilation * (axis.kernel - 1) + 2;
    return std::min(reach, axis.size + 2);
  };
  const bool linear = shape.tile_shift == kLinear;
  const int64_t width = linear ? std::min<int64_t>(kThreads, p.w.out_size) : 1 << shape.tile_shift;
  const int64_t height = linear ? ceil_div<int64_t>(kThreads - 1, p.w.out_size) + 1 : kThreads >> shape.tile_shift;
  return (extent(p.h, height) + 1) * extent(p.w, width) + 2;
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
      counted<sample_kernel<scalar_t, Index>>().launch()<<<grid, kThreads, 0, stream>>>(
          p, input, map, static_cast<scalar_t*>(columns), static_cast<Index>(chunks),
          static_cast<Index>(position_blocks));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_sample_tiles(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ImageView& input,
    const MapView& map,
    void* columns,
    cudaStream_t stream) {
  Shape shape = {fast_axis(p.h, p.aligned), fast_axis(p.w, p.aligned), static_cast<int>(p.channels / p.groups)};
  shape.groups = static_cast<int>(p.groups);
  set_tiles(shape);
  int device = 0;
  int of_block = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto launch = [&](auto packets_of_thread) {
      constexpr int kPackets = decltype(packets_of_thread)::value;
      constexpr int kPacketBytes = sizeof(uint4);
      constexpr int kMostBytes = 55 << 10;  // four blocks on a large GPU's multiprocessor
      const auto kernel = counted<sample_tile_kernel<scalar_t, kPackets>>();
      const int64_t bytes =
          std::min<int64_t>(kPackets * kPacketBytes * usual_box(p, shape), std::min(kMostBytes, of_block - 256));
      shape.capacity = static_cast<int>(bytes / kPacketBytes);
      shape.chunks = ceil_div(shape.per_group, kPackets * kPacket<scalar_t>);
      const auto grid = grid_of(p.batch * p.groups * shape.chunks * shape.tiles);
      C10_CUDA_CHECK(
          cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
      kernel.launch()<<<grid, kThreads, bytes, stream>>>(p, shape, input, map, static_cast<scalar_t*>(columns));
    };
    // The more packets to a thread, the less often a tap's address and weights are computed, and a block's box; but
    // enough blocks first.
    constexpr int kMost = 2;
    constexpr int64_t kEnoughBlocks = 250;
    const int64_t packets = ceil_div<int64_t>(shape.per_group, kPacket<scalar_t>);
    if (p.batch * p.groups * shape.tiles * packets >= kMost * kEnoughBlocks || (forced.fast && packets >= kMost)) {
      launch(std::integral_constant<int, kMost>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
