// SPDX-License-Identifier: MIT
// sample: columns from an image.

// NOTE [ Sample kernels ]
// A thread owns an output position and all taps of some channels in its columns. What a tap needs besides the channel
// (address, weights) is computed once and used for all channels: taps are the outer loop, channels the inner one.
// Neighbouring threads own neighbouring positions of an output row, so they write neighbouring entries of columns and,
// wherever the map is smooth, read neighbouring pixels. Columns are written once and not read here, so they are stored
// past the caches, which are left to the image.
//
// sample_kernel does everything: any type, strides, axes and derivative. sample_tile_kernel does order 0 in float, half
// and bfloat16, in blocks of 256 positions. It first copies the region that a block's windows reach (its box) into
// shared memory, as packets (NOTE [ Packets ]) with zeros beyond the image, and reads from there: four loads of 16
// bytes for a tap of 4 or 8 channels, without masks. A box that is too large even for one packet of channels isn't
// copied: then the block reads the image like sample_kernel. This only affects speed.

#include <algorithm>
#include <climits>

#include "packets.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;

// Channels per thread.
constexpr int kChannels = 8;

template <class scalar_t, class Index, int kAxes, bool kPlain>
__global__ void __launch_bounds__(kThreads) sample_kernel(
    const UnfoldParams p,
    const ImageView input,           // [B, C, *size]
    const PositionsView positions,   // [B, channels, *out]
    scalar_t* __restrict__ columns,  // [B, C, taps, L]
    const Index chunks,              // of a group's channels
    const Index position_blocks) {
  using T = Compute<scalar_t>;
  constexpr int kCorners = 1 << kAxes;
  const auto block = static_cast<Index>(blockIdx.x);
  const Index length = static_cast<Index>(positions_of(p));
  const Index position = block % position_blocks * kThreads + threadIdx.x;
  const Index chunk = block / position_blocks % chunks;
  const Index group = block / position_blocks / chunks;  // among the batch's B * G
  if (position >= length) {
    return;
  }
  const Index b = group / static_cast<Index>(p.groups);
  const Index g = group % static_cast<Index>(p.groups);
  Window<scalar_t, Index, kAxes, kPlain> window(p, positions, b, g, position);

  const Index per_group = static_cast<Index>(p.channels / p.groups);
  const Index first = chunk * kChannels;
  const Index last = min(first + static_cast<Index>(kChannels), per_group);
  const Index taps = static_cast<Index>(taps_of(p));
  CornerOffsets<kAxes, Index> offsets;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    offsets.step[a] = static_cast<Index>(input.axis[kMaxAxes - kAxes + a]);
  }
  const Index channel_stride = static_cast<Index>(input.channel);
  const auto* const image = static_cast<const scalar_t*>(input.data) + b * input.batch + g * per_group * input.channel;
  scalar_t* const out = columns + group * per_group * taps * length + position;

  window.for_taps([&](Index tap) {
    const auto w = window.weights(p.term);
    const unsigned inside = window.corners_inside();
    const Index corner = offsets.at(window.neighbour);
#pragma unroll(kAxes == 3 ? 2 : 4)
    for (Index c = first; c < last; ++c) {
      const scalar_t* const pixel = image + c * channel_stride + corner;
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kCorners; ++k) {
        sum += w.corner[k] * ((inside & 1u << k) != 0 ? load(pixel + offsets[k]) : T(0));
      }
      out[(c * taps + tap) * length] = static_cast<scalar_t>(sum);
    }
  });
}

// The weights of a tap's corners.
struct Corners {
  float nw, ne, sw, se;
};

// What sample_tile_kernel needs to know of the problem.
struct Shape {
  FastAxis h, w;
  int per_group;
  int groups;
  int chunks;      // of a group's channels
  int tiles;       // in the output grid
  int tiles_w;     // in a row of tiles
  int tile_shift;  // a tile is 2^tile_shift positions wide, or kLinear
  int capacity;    // of shared memory, in packets
};

// Tiles with as many consecutive positions as a block has threads, continuing from one output row to the next.
constexpr int kLinear = -1;

// The first and last pixel of some taps' corners along an axis. Taps without neighbours don't count.
struct Extent {
  int low, high;
};

__device__ __forceinline__ void include(Extent& extent, int pixel) {
  if (pixel != kNoPixel) {
    extent.low = min(extent.low, pixel);
    extent.high = max(extent.high, pixel + 1);
  }
}

// Unites the extents of all threads of the block. Takes two barriers.
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

// A thread owns up to kPackets packets. The taps of a window share their parameters.
template <class scalar_t, int kPackets, bool kZeros>
__global__ void __launch_bounds__(kThreads, 4) sample_tile_kernel(
    const UnfoldParams p,
    const Shape shape,
    const ImageView input,             // [B, C, *size]
    const PositionsView positions,     // [B, channels, *out]
    scalar_t* __restrict__ columns) {  // [B, C, taps, L]
  constexpr int kElements = kPacket<scalar_t>;
  extern __shared__ __align__(16) uint4 staged[];
  const int tile = static_cast<int>(blockIdx.x % shape.tiles);
  const int chunk = static_cast<int>(blockIdx.x / shape.tiles % shape.chunks);
  const int group = static_cast<int>(blockIdx.x / shape.tiles / shape.chunks);  // among the batch's B * G
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
  const int pixel_h = shape.h.pixel(i);
  const int pixel_w = shape.w.pixel(j);
  const int64_t at = b * positions.batch + i * positions.axis[1] + j * positions.axis[2];
  const auto parameter = [&](int axis) {  // beyond the edge: no neighbours
    return inside ? load_parameter<scalar_t>(p, positions, at, g, 0, axis) : std::numeric_limits<float>::quiet_NaN();
  };
  Extent reach_h = {INT_MAX, INT_MIN};
  Extent reach_w = {INT_MAX, INT_MIN};
  const float parameter_h = parameter(1);
  const float parameter_w = p.parameters == 1 && p.axes == 2 ? parameter_h : parameter(2);
  const bool finite = is_finite(parameter_h) && is_finite(parameter_w);
  for (int m = 0; m < shape.h.kernel; ++m) {
    include(reach_h, shape.h.template neighbours_of<kZeros>(Source::kRates, m, pixel_h, parameter_h).pixel);
  }
  for (int n = 0; n < shape.w.kernel; ++n) {
    include(reach_w, shape.w.template neighbours_of<kZeros>(Source::kRates, n, pixel_w, parameter_w).pixel);
  }
  unite(reach_h, reach_w);

  // The box, followed by zeros for taps without neighbours.
  const bool empty = reach_h.low > reach_h.high || reach_w.low > reach_w.high;
  const int height = empty ? 0 : reach_h.high - reach_h.low + 1;
  const int width = empty ? 2 : reach_w.high - reach_w.low + 1;
  const int64_t box = static_cast<int64_t>(height) * width;
  const int nowhere = static_cast<int>(box);
  const int plane = nowhere + width + 2;

  const int64_t length = static_cast<int64_t>(shape.h.out_size) * shape.w.out_size;
  const int64_t channel_stride = length * (shape.h.kernel * shape.w.kernel);
  const int first = chunk * kPackets * kElements;  // the first channel, within the group
  const int channels = min(kPackets * kElements, shape.per_group - first);
  const auto* const image = static_cast<const scalar_t*>(input.data) + b * input.batch +
      (static_cast<int64_t>(g) * shape.per_group + first) * input.channel;
  scalar_t* const out = columns + (static_cast<int64_t>(group) * shape.per_group + first) * channel_stride +
      static_cast<int64_t>(i) * shape.w.out_size + j;

  // Calls visit(tap's entry of columns, weights, y, x) for all taps.
  const auto for_taps = [&](const auto& visit) {
    scalar_t* to = out;
    for (int m = 0; m < shape.h.kernel; ++m) {
      const auto y = shape.h.template neighbours_of<kZeros>(Source::kRates, m, pixel_h, parameter_h);
      const auto wy = axis_weights(y.fraction, 0.f);
      for (int n = 0; n < shape.w.kernel; ++n, to += length) {
        const auto x = shape.w.template neighbours_of<kZeros>(Source::kRates, n, pixel_w, parameter_w);
        const auto wx = axis_weights(x.fraction, 0.f);
        Corners w = {wy.low[0] * wx.low[0], wy.low[0] * wx.high[0], wy.high[0] * wx.low[0], wy.high[0] * wx.high[0]};
        if (!finite) {  // its taps have no neighbours: NaN times the zeros that are read instead
          w.nw = w.ne = w.sw = w.se = std::numeric_limits<float>::quiet_NaN();
        }
        visit(to, w, y.pixel, x.pixel);
      }
    }
  };

  // Stages and samples kAtOnce packets, from channel c on.
  const auto sample = [&](int c, auto packets_at_once, auto whole) {
    constexpr int kAtOnce = decltype(packets_at_once)::value;
    constexpr bool kWhole = decltype(whole)::value;  // no packet is padded
    const int here = channels - c;
    const auto* const source = image + c * input.channel;
    const unsigned inverse = 0xffffffffu / width + 1;
    for (int k = threadIdx.x; k < plane; k += kThreads) {
      const int box_row = __umulhi(k, inverse);
      const int row = reach_h.low + box_row;
      const int column = reach_w.low + k - box_row * width;
      const bool in_image = box_row < height && row >= 0 && row < shape.h.size && column >= 0 && column < shape.w.size;
      const auto* const pixel = source + row * input.axis[1] + column * input.axis[2];
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
      for_taps([&](scalar_t* to, const Corners& w, int y, int x) {
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
    for_taps([&](scalar_t* to, const Corners& w, int y, int x) {
      const bool north = y >= 0;
      const bool south = y >= -1 && y + 1 < shape.h.size;
      const bool west = x >= 0;
      const bool east = x >= -1 && x + 1 < shape.w.size;
      const scalar_t* corner = image + y * input.axis[1] + x * input.axis[2];
#pragma unroll 2
      for (int k = 0; k < channels; ++k, corner += input.channel, to += channel_stride) {
        const float value_nw = north && west ? load(corner) : 0.f;
        const float value_ne = north && east ? load(corner + input.axis[2]) : 0.f;
        const float value_sw = south && west ? load(corner + input.axis[1]) : 0.f;
        const float value_se = south && east ? load(corner + input.axis[1] + input.axis[2]) : 0.f;
        stream_out(to, w.nw * value_nw + w.ne * value_ne + w.sw * value_sw + w.se * value_se);
      }
    });
  }
}

// Tiles are 32 positions wide if that fits a row of the output: then a warp writes whole memory lines, and windows of
// neighbouring rows read the same pixels. Otherwise they are consecutive positions, so that whole lines are written
// anyway.
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

// The number of packets in the box of a tile with rates up to kUsualRate, including the zeros.
int64_t usual_box(const UnfoldParams& p, const Shape& shape) {
  constexpr int64_t kUsualRate = 3;
  const auto extent = [](const Axis<int64_t>& axis, int64_t outputs) {
    const int64_t reach =
        (std::min(outputs, axis.out_size) - 1) * axis.stride + kUsualRate * axis.dilation * (axis.kernel - 1) + 2;
    return std::min(reach, axis.size + 2);
  };
  const bool linear = shape.tile_shift == kLinear;
  const int64_t width = linear ? std::min<int64_t>(kThreads, p.axis[2].out_size) : 1 << shape.tile_shift;
  const int64_t height =
      linear ? ceil_div<int64_t>(kThreads - 1, p.axis[2].out_size) + 1 : kThreads >> shape.tile_shift;
  return (extent(p.axis[1], height) + 1) * extent(p.axis[2], width) + 2;
}

}  // namespace

void launch_sample(
    const UnfoldParams& p,
    c10::ScalarType type,
    bool wide,
    const ImageView& input,
    const PositionsView& positions,
    void* columns,
    cudaStream_t stream) {
  const int64_t chunks = ceil_div<int64_t>(p.channels / p.groups, kChannels);
  const int64_t position_blocks = ceil_div<int64_t>(positions_of(p), kThreads);
  const auto grid = grid_of(p.batch * p.groups * chunks * position_blocks);
  dispatch_floating(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_general(p, wide, [&](auto index, auto axes, auto plain) {
      using Index = decltype(index);
      const auto kernel = counted<sample_kernel<scalar_t, Index, decltype(axes)::value, decltype(plain)::value>>();
      kernel.launch()<<<grid, kThreads, 0, stream>>>(
          p, input, positions, static_cast<scalar_t*>(columns), static_cast<Index>(chunks),
          static_cast<Index>(position_blocks));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void launch_sample_tiles(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ImageView& input,
    const PositionsView& positions,
    void* columns,
    cudaStream_t stream) {
  Shape shape = {fast_axis(p, 1), fast_axis(p, 2), static_cast<int>(p.channels / p.groups)};
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
      const int64_t bytes =
          std::min<int64_t>(kPackets * kPacketBytes * usual_box(p, shape), std::min(kMostBytes, of_block - 256));
      shape.capacity = static_cast<int>(bytes / kPacketBytes);
      shape.chunks = ceil_div(shape.per_group, kPackets * kPacket<scalar_t>);
      const auto grid = grid_of(p.batch * p.groups * shape.chunks * shape.tiles);
      const auto kernel = p.padding_mode == PaddingMode::kZeros
          ? counted<sample_tile_kernel<scalar_t, kPackets, true>>()
          : counted<sample_tile_kernel<scalar_t, kPackets, false>>();
      C10_CUDA_CHECK(
          cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
      kernel.launch()<<<grid, kThreads, bytes, stream>>>(p, shape, input, positions, static_cast<scalar_t*>(columns));
    };
    // The more packets per thread, the less often a tap's address and weights, and a block's box, are computed. But
    // having enough blocks comes first.
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
