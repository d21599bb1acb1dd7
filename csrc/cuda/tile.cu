// SPDX-License-Identifier: MIT
// splat and dot, both or either, where they are wanted most: order 0 of splat and order 1 of dot, in float, half and
// bfloat16.

// NOTE [ Tiles ]
// Each entry of columns is added to four pixels. Done with atomic additions in memory that is all the time a backward
// takes, so a block adds in shared memory first. It has a tile of 16 x 4 output positions and 32 channels of a
// group, and an accumulator for every pixel that its windows reach (its box) and every channel. When all taps are done,
// each accumulator is added to memory once.
//
// The block goes from tap to tap. For each:
// - Positions across lanes. A thread has one position and half of the channels. It multiplies its entries of columns,
//   read when the previous tap was at work, with the four corners of the tap, read as packets (NOTE [ Packets ]), and
//   sums over the channels. The derivatives by the rates are combinations of these four sums, so they cost next to
//   nothing for one rate or two. It leaves its entries in shared memory, and, for every corner, weight and accumulator.
// - Channels across lanes. The four corners of a tap are one pixel each of (even, odd) rows x (even, odd) columns. Each
//   of the four warps takes the pixels of one such class, for all positions one after the other, a lane having a
//   channel. So no two threads ever add to the same accumulator: no atomics, and a fixed order.
//
// Where the box would not fit, taps are done in several passes of as many rows of taps as do fit, or, if even one row
// does not, the box is cut, and what lies outside goes to memory directly. Only speed depends on the box.
//
// What a block adds is the same in every run. The order in which blocks add is not, unless sums are fixed point
// (NOTE [ Fixed point ]).

#include <climits>

#include "fixed_point.h"
#include "packets.h"

namespace ddu::cuda {

namespace {

constexpr int kBlock = kChannelBlock;
constexpr int kTileW = 16;
constexpr int kTileH = 4;
constexpr int kPositions = kTileW * kTileH;
constexpr int kParts = 2;  // of the channels of a block, one for each thread of a position
constexpr int kThreads = kPositions * kParts;
constexpr int kPacketsAhead = 1;  // that a thread reads ahead
constexpr int kClasses = 4;       // of pixels, by whether row and column are even, one for each warp
static_assert(kThreads == kClasses * 32);

// Blocks that should fit on a multiprocessor together, so that some compute while others wait.
constexpr int kBlocksPerMultiprocessor = 5;

constexpr int kBytesOfPixel = kBlock * 4;

// Where a corner's share goes: the byte of the accumulators at its pixel's channel 0, or ~pixel for a pixel outside
// the box. A corner outside the image goes to an accumulator that nobody reads, its class's.
struct Share {
  float weight;
  int to;
};

struct Shared {
  static constexpr int kRow = kBlock + 2;  // the two spread the positions over the banks, 8 bytes each
  float values[kPositions][kRow];          // entries of columns of the tap at work
  Share shares[kClasses][kPositions];
  int low_h, high_h, low_w, high_w;  // of the pixels that the pass reaches
  float dots[2][kPositions];
  alignas(16) float accumulators[kClasses][kBlock];  // [capacity + kClasses]: of the box, and those that nobody reads
};

struct Box {
  int h, w, height, width;
};

// A tap of one window.
struct Tap {
  Neighbours<float, int> y, x;
  AxisWeights<float> weights_h, weights_w;
};

// Cuts a box down to `capacity` pixels around its middle, squarely if it has to lose much.
__device__ __forceinline__ Box cut(Box box, int capacity) {
  if (static_cast<int64_t>(box.height) * box.width > capacity) {
    const int side = static_cast<int>(sqrtf(static_cast<float>(capacity)));
    const int width = min(box.width, max(side, capacity / box.height));
    const int height = min(box.height, capacity / width);
    box = {box.h + (box.height - height) / 2, box.w + (box.width - width) / 2, height, width};
  }
  return box;
}

// What a group of warps' windows reach with the taps [m, last_m) x [0, kW), within the image. Approximately: see NOTE.
// Threads of part 0 find it along the height, those of part 1 along the width.
__device__ __forceinline__ Box reach(
    const FastAxis& h,
    const FastAxis& w,
    const Window<float>& window,
    int i,
    int j,
    int part,
    int m,
    int last_m,
    Shared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.low_h = shared.low_w = INT_MAX;
    shared.high_h = shared.high_w = -1;
  }
  __syncthreads();
  int low = INT_MAX;
  int high = -1;
  const auto along = [&](const FastAxis& axis, int out_index, float rate, int first_tap, int last_tap) {
    const float centre = static_cast<float>(axis.centre(out_index)) + axis.fraction;
    const float limit = static_cast<float>(axis.size - 1);
    const float a = centre + axis.slope(first_tap) * rate;
    const float z = centre + axis.slope(last_tap) * rate;
    low = static_cast<int>(fminf(fmaxf(floorf(fminf(a, z)), 0.f), limit));
    high = static_cast<int>(fminf(fmaxf(floorf(fmaxf(a, z)) + 1.f, 0.f), limit));
  };
  if (window.finite) {
    if (part == 0) {
      along(h, i, window.rate_h, m, last_m - 1);
    } else {
      along(w, j, window.rate_w, 0, w.kernel - 1);
    }
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    low = min(low, __shfl_xor_sync(0xffffffffu, low, lanes));
    high = max(high, __shfl_xor_sync(0xffffffffu, high, lanes));
  }
  if (threadIdx.x % 32 == 0) {
    atomicMin(part == 0 ? &shared.low_h : &shared.low_w, low);
    atomicMax(part == 0 ? &shared.high_h : &shared.high_w, high);
  }
  __syncthreads();
  if (shared.high_h < 0) {
    return {0, 0, 0, 0};
  }
  return {shared.low_h, shared.low_w, shared.high_h - shared.low_h + 1, shared.high_w - shared.low_w + 1};
}

// A storage type as it is loaded; converted only once it is used.
template <class scalar_t>
using Raw = std::conditional_t<std::is_same_v<scalar_t, float>, float, unsigned short>;

template <class scalar_t>
__device__ __forceinline__ float from_raw(Raw<scalar_t> raw) {
  if constexpr (std::is_same_v<scalar_t, float>) {
    return raw;
  } else if constexpr (std::is_same_v<scalar_t, c10::BFloat16>) {
    return __uint_as_float(static_cast<unsigned>(raw) << 16);
  } else {
    return __half2float(__ushort_as_half(raw));
  }
}

// Adds neighbouring channels of a pixel to the sums in memory.
template <class Vector>
__device__ __forceinline__ void put_in_memory(const Sums& sums, int64_t at, const Vector& value) {
  const auto* const elements = reinterpret_cast<const float*>(&value);
  constexpr int kSize = sizeof(Vector) / sizeof(float);
  if (sums.largest != nullptr) {
    const FixedPoint<float> fixed(sums);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      fixed.add(static_cast<unsigned long long*>(sums.data) + at + k, elements[k]);
    }
    return;
  }
  float* const to = static_cast<float*>(sums.data) + at;
#if __CUDA_ARCH__ >= 900
  if constexpr (kSize == 4) {
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(value.x), "f"(value.y), "f"(value.z),
                 "f"(value.w)
                 : "memory");
  } else
#endif
  {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      atomicAdd(to + k, elements[k]);
    }
  }
}

// Leaves where the corners of a tap go that lie in rows that are even (part 0) or odd (part 1), and with what weight.
// Returns whether one goes to memory directly.
__device__ __forceinline__ bool set_shares(
    const FastAxis& h,
    const FastAxis& w,
    const Tap& tap,
    const Box& box,
    int capacity,
    int part,
    int position,
    Shared& shared) {
  const int south = (tap.y.pixel ^ part) & 1;
  const int row = tap.y.pixel + south;
  const float row_weight = south ? tap.weights_h.high[0] : tap.weights_h.low[0];
  const bool row_exists = tap.y.pixel != kNoPixel && row >= 0 && row < h.size;
  const int box_row = row - box.h;
  bool far = false;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int east = (tap.x.pixel ^ odd) & 1;
    const int column = tap.x.pixel + east;
    const int pixel_class = 2 * part + odd;
    Share share = {
        row_weight * (east ? tap.weights_w.high[0] : tap.weights_w.low[0]), (capacity + pixel_class) * kBytesOfPixel};
    if (row_exists && tap.x.pixel != kNoPixel && column >= 0 && column < w.size) {
      const int box_column = column - box.w;
      const bool in_box = box_row >= 0 && box_row < box.height && box_column >= 0 && box_column < box.width;
      share.to = in_box ? (box_row * box.width + box_column) * kBytesOfPixel : ~(row * w.size + column);
      far = far || !in_box;
    }
    shared.shares[pixel_class][position] = share;
  }
  return far;
}

// Adds a warp's share of a tap, all of it within the box: two positions at a time, so that the second need not wait for
// the first unless both add to the same pixel. What else is needed is read well before.
__device__ __forceinline__ void add_tap(Shared& shared, int warp, int lane) {
  constexpr int kAtOnce = 8;
  char* const accumulators = reinterpret_cast<char*>(&shared.accumulators[0][lane]);
  const auto* const shares = reinterpret_cast<const float4*>(shared.shares[warp]);
#pragma unroll 1
  for (int q = 0; q < kPositions; q += kAtOnce) {
    float4 pairs[kAtOnce / 2];
    float entries[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce / 2; ++k) {
      pairs[k] = shares[q / 2 + k];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      entries[k] = shared.values[q + k][lane];
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; k += 2) {
      const float4 pair = pairs[k / 2];
      auto* const to_a = reinterpret_cast<float*>(accumulators + __float_as_int(pair.y));
      auto* const to_b = reinterpret_cast<float*>(accumulators + __float_as_int(pair.w));
      const float old_a = *to_a;
      const float old_b = *to_b;
      const float new_a = old_a + pair.x * entries[k];
      const float new_b = (to_a == to_b ? new_a : old_b) + pair.z * entries[k + 1];
      *to_a = new_a;
      *to_b = new_b;
    }
  }
}

// The same where some goes to memory. What stays at a pixel from one position to the next is summed up first.
__device__ __noinline__ void add_tap_with_far(
    Shared& shared, int warp, int lane, const Sums sums, int64_t sums_at, int capacity) {
  char* const accumulators = reinterpret_cast<char*>(&shared.accumulators[0][lane]);
  int at = (capacity + warp) * kBytesOfPixel;
  float sum = 0;
  const auto put = [&] {
    if (at >= 0) {
      *reinterpret_cast<float*>(accumulators + at) += sum;
    } else {
      put_in_memory(sums, sums_at + static_cast<int64_t>(~at) * kBlock + lane, float1{sum});
    }
  };
  for (int q = 0; q < kPositions; ++q) {
    const Share share = shared.shares[warp][q];
    if (share.to != at) {
      put();
      at = share.to;
      sum = 0;
    }
    sum += share.weight * shared.values[q][lane];
  }
  put();
}

template <class scalar_t, bool kSplat, bool kDot>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) tile_kernel(
    const UnfoldParams p,
    const FastAxis h,
    const FastAxis w,
    const ColumnsView columns,          // [B, C * kH * kW, L]
    const MapView map,                  // [B, G * rates, H_out, W_out]
    const Sums sums,                    // [B * G, channel blocks, H, W, kBlock]
    const uint4* __restrict__ packets,  // [B, G, packets per group, H + 3, W + 3]
    const Term dot_term,
    const int rates,
    float* __restrict__ partial,  // [channel blocks, B, G, rates, H_out, W_out]
    const int tiles_w,
    const int tiles,
    const int blocks,  // of channels
    const int capacity) {
  constexpr int kMine = kBlock / kParts;  // channels of a thread, in the first half of the work
  constexpr int kElements = kPacket<scalar_t>;
  static_assert(kMine % kElements == 0);
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);
  float* const accumulators = &shared.accumulators[0][0];

  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int block = static_cast<int>(blockIdx.x / tiles % blocks);
  const int64_t group = blockIdx.x / tiles / blocks;  // of the batch's B * G
  const int64_t b = group / p.groups;
  const int64_t g = group % p.groups;
  const int position = threadIdx.x % kPositions;
  const int part = threadIdx.x / kPositions;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int i = tile / tiles_w * kTileH + position / kTileW;
  const int j = tile % tiles_w * kTileW + position % kTileW;
  const bool inside = i < h.out_size && j < w.out_size;
  const int per_group = static_cast<int>(p.channels / p.groups);
  const int64_t positions = p.h.out_size * p.w.out_size;
  const int64_t out_position = i * w.out_size + j;

  // A position beyond the edge is one with no neighbours at any tap.
  Window<float> window = {};
  window.rate_h = window.rate_w = std::numeric_limits<float>::quiet_NaN();
  if (inside) {
    window = load_window<scalar_t>(p, map, b, g, i, j);
  }

  // The entries of columns of this thread: channels [first, first + mine) of the group.
  const int first = block * kBlock + part * kMine;
  const int mine = inside ? min(kMine, per_group - first) : 0;
  const bool all = mine == kMine;
  const int taps = h.kernel * w.kernel;
  const int64_t channel_stride = taps * columns.row;
  const auto* const entries = static_cast<const scalar_t*>(columns.data) + b * columns.batch +
      (g * per_group + first) * channel_stride + out_position * columns.position;
  Raw<scalar_t> next[kMine];
#pragma unroll
  for (int k = 0; k < kMine; ++k) {
    next[k] = 0;
  }
  const auto fetch = [&](int tap) {
    const scalar_t* const from = entries + tap * columns.row;
    if (all) {
#pragma unroll
      for (int k = 0; k < kMine; ++k) {
        next[k] = __ldcs(reinterpret_cast<const Raw<scalar_t>*>(from + k * channel_stride));
      }
    } else {
#pragma unroll
      for (int k = 0; k < kMine; ++k) {
        if (k < mine) {
          next[k] = __ldcs(reinterpret_cast<const Raw<scalar_t>*>(from + k * channel_stride));
        }
      }
    }
  };
  fetch(0);

  const auto locate = [&](int m, int n) {
    Tap tap;
    tap.y = h.neighbours_of(m, h.centre(i), window.rate_h);
    tap.x = w.neighbours_of(n, w.centre(j), window.rate_w);
    tap.weights_h = axis_weights(tap.y.fraction, h.slope(m));
    tap.weights_w = axis_weights(tap.x.fraction, w.slope(n));
    return tap;
  };
  Tap tap = locate(0, 0);

  [[maybe_unused]] const int pitch = w.size + static_cast<int>(padded(0));
  [[maybe_unused]] const int plane = (h.size + static_cast<int>(padded(0))) * pitch;
  [[maybe_unused]] const uint4* const image = packets +
      (group * packets_per_group<scalar_t>(p) + first / kElements) * plane + (pitch + 1) * static_cast<int>(kBorderLow);
  // The corners of the packets at work and of those to come.
  constexpr int kPackets = kMine / kElements;
  constexpr int kAhead = kPackets < kPacketsAhead ? kPackets : kPacketsAhead;
  [[maybe_unused]] uint4 corners[kAhead][4];
  [[maybe_unused]] const auto read_corners = [&](int q) {
    if (q < kPackets) {
      // Where there are no channels, the first pixels of the border: zeros.
      const uint4* const at = q * kElements < mine
          ? image + (tap.y.pixel * pitch + tap.x.pixel) + static_cast<int64_t>(q) * plane
          : packets;
      corners[q % kAhead][0] = __ldg(at);
      corners[q % kAhead][1] = __ldg(at + 1);
      corners[q % kAhead][2] = __ldg(at + pitch);
      corners[q % kAhead][3] = __ldg(at + pitch + 1);
    }
  };
  if constexpr (kDot) {
#pragma unroll
    for (int q = 0; q < kAhead; ++q) {
      read_corners(q);
    }
  }
  [[maybe_unused]] float dot_h = 0;
  [[maybe_unused]] float dot_w = 0;
  const int64_t pixels = p.h.size * p.w.size;
  const int64_t sums_at = (group * blocks + block) * pixels * kBlock;

  int m = 0;
  while (m < h.kernel) {
    int last_m = h.kernel;  // of the pass, exclusive
    [[maybe_unused]] Box box = {};
    if constexpr (kSplat) {
      while (true) {
        box = reach(h, w, window, i, j, part, m, last_m, shared);
        if (static_cast<int64_t>(box.height) * box.width <= capacity || last_m - m == 1) {
          break;
        }
        last_m = m + (last_m - m + 1) / 2;
      }
      box = cut(box, capacity);
      for (int k = threadIdx.x; k < box.height * box.width * kBlock / 4; k += kThreads) {
        reinterpret_cast<float4*>(accumulators)[k] = make_float4(0, 0, 0, 0);
      }
    }

    for (; m < last_m; ++m) {
      for (int n = 0; n < w.kernel; ++n) {
        // Positions across lanes.
        float values[kMine];
#pragma unroll
        for (int k = 0; k < kMine; ++k) {
          values[k] = from_raw<scalar_t>(next[k]);
        }
        if constexpr (kDot) {
          CornerWeights<float> products = {0, 0, 0, 0};
#pragma unroll
          for (int q = 0; q < kPackets; ++q) {
#pragma unroll
            for (int k = 0; k < kElements; ++k) {
              const float value = values[q * kElements + k];
              products.nw += value * element<scalar_t>(corners[q % kAhead][0], k);
              products.ne += value * element<scalar_t>(corners[q % kAhead][1], k);
              products.sw += value * element<scalar_t>(corners[q % kAhead][2], k);
              products.se += value * element<scalar_t>(corners[q % kAhead][3], k);
            }
            read_corners(q + kAhead);
          }
          // The corner weights, differentiated by one rate; what the two corners of a side share is taken out.
          const auto& y = tap.weights_h;
          const auto& x = tap.weights_w;
          dot_h += y.high[1] * (x.low[0] * (products.sw - products.nw) + x.high[0] * (products.se - products.ne));
          dot_w += x.high[1] * (y.low[0] * (products.ne - products.nw) + y.high[0] * (products.se - products.sw));
        }
        [[maybe_unused]] bool far = false;
        if constexpr (kSplat) {
          __syncthreads();  // the accumulators are zeros, and nobody is at the previous tap
#pragma unroll
          for (int k = 0; k < kMine; k += 2) {
            *reinterpret_cast<float2*>(&shared.values[position][part * kMine + k]) =
                make_float2(values[k], values[k + 1]);
          }
          far = set_shares(h, w, tap, box, capacity, part, position, shared);
        }
        tap = locate(n + 1 < w.kernel ? m : m + 1, n + 1 < w.kernel ? n + 1 : 0);
        if (m * w.kernel + n + 1 < taps) {
          fetch(m * w.kernel + n + 1);
          if constexpr (kDot) {
#pragma unroll
            for (int q = 0; q < kAhead; ++q) {
              read_corners(q);
            }
          }
        }
        if constexpr (kSplat) {
          far = __syncthreads_or(far) != 0;

          // Channels across lanes.
          if (far) {
            add_tap_with_far(shared, warp, lane, sums, sums_at, capacity);
          } else {
            add_tap(shared, warp, lane);
          }
        }
      }
    }

    if constexpr (kSplat) {
      __syncthreads();
      constexpr int kVectors = kBlock / 4;  // of a pixel
      for (int k = threadIdx.x; k < box.height * box.width * kVectors; k += kThreads) {
        const float4 vector = reinterpret_cast<const float4*>(accumulators)[k];
        if (vector.x != 0 || vector.y != 0 || vector.z != 0 || vector.w != 0) {
          const int pixel = k / kVectors;
          const int64_t to = sums_at +
              (static_cast<int64_t>(box.h + pixel / box.width) * w.size + box.w + pixel % box.width) * kBlock +
              k % kVectors * 4;
          put_in_memory(sums, to, vector);
        }
      }
    }
  }

  if constexpr (kDot) {
    __syncthreads();
    if (part == 1) {
      shared.dots[0][position] = dot_h;
      shared.dots[1][position] = dot_w;
    }
    __syncthreads();
    if (part == 0 && inside) {
      dot_h += shared.dots[0][position];
      dot_w += shared.dots[1][position];
      if (!window.finite) {
        dot_h = dot_w = std::numeric_limits<float>::quiet_NaN();
      }
      float* const to = partial + (block * p.batch * p.groups + group) * rates * positions + out_position;
      if (rates == 1) {
        to[0] = dot_term.count[1][0] * dot_h + dot_term.count[0][1] * dot_w;
      } else {
        to[0] = dot_h;
        to[positions] = dot_w;
      }
    }
  }
}

}  // namespace

void launch_tiles(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ColumnsView& columns,
    const MapView& map,
    const Sums& sums,
    const void* packets,
    const Term& dot_term,
    int rates,
    float* partial,
    cudaStream_t stream) {
  const int64_t tiles_w = ceil_div<int64_t>(p.w.out_size, kTileW);
  const int64_t tiles = tiles_w * ceil_div<int64_t>(p.h.out_size, kTileH);
  const int64_t blocks = channel_blocks(p);
  const auto grid = grid_of(p.batch * p.groups * blocks * tiles);
  int device = 0;
  int of_multiprocessor = 0;
  int of_block = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  constexpr int kReserved = 1024;  // of every block, for the system
  const int bytes = std::min(of_multiprocessor / kBlocksPerMultiprocessor - kReserved, of_block);
  const int capacity = (bytes - static_cast<int>(sizeof(Shared))) / (kBlock * 4);
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto kernel = sums.data == nullptr ? tile_kernel<scalar_t, false, true>
        : packets == nullptr                 ? tile_kernel<scalar_t, true, false>
                                             : tile_kernel<scalar_t, true, true>;
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<grid, kThreads, bytes, stream>>>(
        p, fast_axis(p.h, p.aligned), fast_axis(p.w, p.aligned), columns, map, sums, static_cast<const uint4*>(packets),
        dot_term, rates, partial, static_cast<int>(tiles_w), static_cast<int>(tiles), static_cast<int>(blocks),
        capacity);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
