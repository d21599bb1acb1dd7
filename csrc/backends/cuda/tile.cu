// SPDX-License-Identifier: MIT
// splat and dot, either or both, in the cases that are needed most: order 0 of splat and order 1 of dot, in float, half
// and bfloat16.

// NOTE [ Tiles ]
// Each entry of columns is added to four pixels. With atomic additions in memory, these would take all the time of a
// backward. So a block first adds up, in registers, what its own entries contribute to a pixel. It owns a tile of
// output positions and processes some of their taps at a time (a pass). A thread owns a slot: one tap of one position.
//
// A pass begins by making a list of its slots, sorted by the pixel northwest of the tap. All channels share it. Then,
// for each chunk of channels in turn:
// - Positions across lanes. A thread multiplies the entries of its slot by the four corners of its tap, read as packets
//   (NOTE [ Packets ]), and sums over the channels. The derivatives with respect to the rates are combinations of these
//   four sums, so one or two rates cost next to nothing. It leaves the entries in shared memory, one row per slot.
// - Channels across lanes. The warps divide the list among them. Each walks along its part, that is along the rows of
//   the image, with sums for the four pixels around its current taps. For each slot it reads the row, 4 bytes per lane,
//   and adds it to the four sums. When it moves one pixel east, it adds the two western sums to memory, and the eastern
//   ones become the western ones.
//
// With three axes a tap has eight corners, four in the layer of pixels before it and four in the one after. There is a
// list for each layer, whose weights include the layer's share, and both use the same entries in shared memory.
//
// The list is made by a counting sort. Pixels are mapped to buckets: row and column modulo the size of a table, which
// is usually larger than what the windows of a tile reach. If it isn't, pixels share buckets, and a pixel's sums may go
// to memory in several parts; this only affects speed. Each warp counts for itself, in the order of its lanes, so the
// list, and what a block adds, is the same in every run. The order in which blocks add is not, unless sums are fixed
// point (NOTE [ Fixed point ]).

#include <algorithm>
#include <limits>

#include "fixed_point.h"
#include "packets.h"

namespace ddu::cuda {

namespace {

constexpr int kLanes = 32;
constexpr int kTileW = 16;
constexpr int kTileH = 2;
constexpr int kPositions = kTileW * kTileH;
static_assert(kPositions % kLanes == 0);
constexpr int kMostTaps = 9;  // per pass
constexpr int kMostSlots = kPositions * kMostTaps;
constexpr int kMostWarps = kMostSlots / kLanes;

// Blocks that should fit on a multiprocessor together, so that some can read while others add.
template <int kAxes>
constexpr int kBlocksPerMultiprocessor = kAxes == 3 ? 3 : 4;

// Channels per chunk: 4 bytes for each lane.
template <class scalar_t>
constexpr int kChunk = kLanes * 4 / sizeof(scalar_t);

// The size of the table of buckets, in pixels. The middle of the tile is in its middle.
constexpr int kTableW = 32;
constexpr int kTableH = 16;
constexpr int kBuckets = kTableW * kTableH;

constexpr int kAtOnce = 4;  // slots of the list that a warp reads ahead

// The slots of a pass that have a neighbour, in the order of their pixels along the height and the width. With three
// axes there is one list for the layer of pixels before a tap and one for the layer after it.
struct List {
  alignas(16) float4 weights[kMostSlots];      // of the corners: nw, ne, sw, se
  alignas(16) int offsets[kMostSlots];         // the slot's place in rows, in bytes
  int pixels[kMostSlots];                      // the northwestern pixel's place in sums
  alignas(4) unsigned char steps[kMostSlots];  // pixels east to the next slot's pixel: 0, 1, or 2 if it is elsewhere
};

template <int kAxes>
struct Shared {
  static constexpr int kRow = kLanes + 1;  // the extra one spreads the slots over the banks
  union {
    unsigned rows[kMostSlots][kRow];                          // entries of columns
    alignas(16) unsigned short counts[kMostWarps][kBuckets];  // each warp's slots, while the list is made
    unsigned pairs[kMostWarps][kBuckets / 2];                 // the same, two buckets at a time
    float dots[kAxes][kMostSlots];                            // at the end
  };
  List lists[kAxes - 1];
  unsigned short starts[kBuckets];  // in the list
  int totals[kMostWarps];
};
static_assert(kMostSlots % kAtOnce == 0 && kAtOnce == 4);

// A storage type as it is loaded; it is converted only when it is used.
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

// A tap of one window, with its weights; [1] is differentiated with respect to the parameter. z is for three axes.
struct Tap {
  Neighbours<float, int> z, y, x;
  AxisWeights<float> weights_d, weights_h, weights_w;
};

// The first pixel of a table along an axis. The centre of the window at out_index is in the middle of the table.
template <Source kSource>
__device__ __forceinline__ int table_start(const FastAxis& axis, int out_index, int table) {
  return axis.pixel(out_index) + (per_tap(kSource) ? axis.dilation * (axis.kernel - 1) / 2 : 0) - table / 2;
}

// Makes the list of a pass, with three axes for the layer `side`. Returns the number of slots per warp, a multiple of
// kAtOnce, and stores the number of slots in `size`.
template <int kAxes>
__device__ __forceinline__ int make_list(
    const UnfoldParams& p,
    const Tap& tap,
    int side,
    int first_row,
    int first_column,
    Shared<kAxes>& shared,
    int& size) {
  List& list = shared.lists[side];
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int threads = blockDim.x;
  const int warps = threads / kLanes;

  __syncthreads();  // nobody uses the rows any more
#pragma unroll 1
  for (int k = threadIdx.x; k < warps * kBuckets / 8; k += threads) {
    reinterpret_cast<uint4*>(shared.counts)[k] = {0, 0, 0, 0};
  }
  __syncthreads();

  const bool exists = tap.y.pixel != kNoPixel && tap.x.pixel != kNoPixel && (kAxes == 2 || tap.z.pixel != kNoPixel);
  const int bucket = exists
      ? ((tap.y.pixel - first_row) & (kTableH - 1)) * kTableW + ((tap.x.pixel - first_column) & (kTableW - 1))
      : -1;
  const unsigned peers = __match_any_sync(0xffffffffu, bucket);
  const int rank = __popc(peers & ((1u << lane) - 1));
  if (exists && rank == 0) {
    shared.counts[warp][bucket] = static_cast<unsigned short>(__popc(peers));
  }
  __syncthreads();

  // Sums over the warps before each warp, and over the buckets before each bucket. A thread owns some pairs of adjacent
  // buckets.
  constexpr int kPairs = kBuckets / 2;
  const int of_thread = ceil_div(kPairs, threads);
  const int first = min(kPairs, static_cast<int>(threadIdx.x) * of_thread);
  const int end = min(kPairs, first + of_thread);
  auto* const starts = reinterpret_cast<unsigned*>(shared.starts);
  int mine = 0;
#pragma unroll 1
  for (int pair = first; pair < end; ++pair) {
    unsigned sum = 0;
#pragma unroll
    for (int k = 0; k < kMostWarps; ++k) {
      if (k < warps) {
        const unsigned count = shared.pairs[k][pair];
        shared.pairs[k][pair] = sum;
        sum += count;
      }
    }
    starts[pair] = sum;
    mine += (sum & 0xffff) + (sum >> 16);
  }
  int before = mine;
#pragma unroll
  for (int lanes = 1; lanes < kLanes; lanes *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, before, lanes);
    before += lane >= lanes ? other : 0;
  }
  if (lane == kLanes - 1) {
    shared.totals[warp] = before;
  }
  __syncthreads();
  before -= mine;
  size = 0;
#pragma unroll
  for (int k = 0; k < kMostWarps; ++k) {
    const int total = k < warps ? shared.totals[k] : 0;
    before += k < warp ? total : 0;
    size += total;
  }
#pragma unroll 1
  for (int pair = first; pair < end; ++pair) {
    const unsigned sum = starts[pair];
    const unsigned next = before + (sum & 0xffff);
    starts[pair] = before | next << 16;
    before = next + (sum >> 16);
  }
  __syncthreads();

  const int layer = kAxes == 3 ? (tap.z.pixel + 1 + side) * static_cast<int>(sums_layer(p)) : 0;
  const int pixel = layer + (tap.y.pixel + 1) * static_cast<int>(sums_row(p)) + tap.x.pixel + 1;
  int at = 0;
  if (exists) {
    at = shared.starts[bucket] + shared.counts[warp][bucket] + rank;
    const float share = kAxes == 2 ? 1.f : side == 0 ? tap.weights_d.low[0] : tap.weights_d.high[0];
    const float north = share * tap.weights_h.low[0];
    const float south = share * tap.weights_h.high[0];
    list.weights[at] = {
        north * tap.weights_w.low[0], north * tap.weights_w.high[0], south * tap.weights_w.low[0],
        south * tap.weights_w.high[0]};
    list.offsets[at] = static_cast<int>(threadIdx.x) * Shared<kAxes>::kRow * 4;
    list.pixels[at] = pixel;
  }
  // Entries that pad the last slots read at once are added to sums that go nowhere.
  if (const int fill = size + threadIdx.x; threadIdx.x < kAtOnce && fill < kMostSlots) {
    list.offsets[fill] = 0;
    list.steps[fill] = 0;
  }
  __syncthreads();

  const int of_warp = ceil_div(size, warps * kAtOnce) * kAtOnce;
  if (exists) {
    const bool last = at + 1 == size || (at + 1) % of_warp == 0;
    const unsigned step = last ? 2 : static_cast<unsigned>(list.pixels[at + 1] - pixel);
    list.steps[at] = static_cast<unsigned char>(min(step, 2u));
  }
  return of_warp;
}

// Where a chunk's channels have their sums in memory, and which of them a lane has: one in float, two adjacent ones in
// half types.
struct ChunkSums {
  const Sums& sums;
  FixedPoint<float> fixed;
  int64_t first;   // pixel 0 and channel 0 of the chunk
  int64_t stride;  // between blocks of channels
  int channels;    // how many there are

  // Called by all lanes together.
  template <int kValues>
  __device__ __forceinline__ void add(int64_t pixel, const float (&values)[kValues]) const {
    const int lane = threadIdx.x % kLanes;
    const int64_t at = first + pixel * kChannelBlock;
    if (sums.largest != nullptr) {
      // A lane adds to channel `lane` of each block, whichever lane has its value: lanes are then 8 bytes apart,
      // not 16.
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        float value = values[0];
        if constexpr (kValues == 2) {
          const int from = lane / 2 + k * kLanes / 2;
          const float even = __shfl_sync(0xffffffffu, values[0], from);
          const float odd = __shfl_sync(0xffffffffu, values[1], from);
          value = lane % 2 == 0 ? even : odd;
        }
        if (k * kLanes + lane < channels) {
          fixed.add(static_cast<unsigned long long*>(sums.data) + at + k * stride + lane, value);
        }
      }
      return;
    }
    if (lane * kValues >= channels) {
      return;
    }
    float* const to =
        static_cast<float*>(sums.data) + at + lane * kValues / kChannelBlock * stride + lane * kValues % kChannelBlock;
#if __CUDA_ARCH__ >= 900
    if constexpr (kValues == 2) {
      asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(values[0]), "f"(values[1]) : "memory");
    } else
#endif
    {
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        atomicAdd(to + k, values[k]);
      }
    }
  }
};
static_assert(kChannelBlock == kLanes);

// Walks along [begin, end) of the list; both are multiples of kAtOnce.
template <class scalar_t>
__device__ __forceinline__ void add_list(
    const List& list, const unsigned* first_row, int begin, int end, const ChunkSums& sums, int pitch) {
  constexpr int kValues = 4 / sizeof(scalar_t);
  const char* const rows = reinterpret_cast<const char*>(first_row + threadIdx.x % kLanes);
  float nw[kValues] = {}, ne[kValues] = {}, sw[kValues] = {}, se[kValues] = {};
  const auto step = [&](int pixel) {
    sums.add(pixel, nw);
    sums.add(pixel + pitch, sw);
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      nw[v] = ne[v];
      sw[v] = se[v];
      ne[v] = se[v] = 0;
    }
  };
#pragma unroll 1
  for (int k = begin; k < end; k += kAtOnce) {
    const int4 offsets = *reinterpret_cast<const int4*>(&list.offsets[k]);
    const unsigned steps = *reinterpret_cast<const unsigned*>(&list.steps[k]);
    float4 weights[kAtOnce];
    unsigned words[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int offset = u == 0 ? offsets.x : u == 1 ? offsets.y : u == 2 ? offsets.z : offsets.w;
      words[u] = *reinterpret_cast<const unsigned*>(rows + offset);
      weights[u] = list.weights[k + u];
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const uint4 packet = {words[u], 0, 0, 0};
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        const float value = element<scalar_t>(packet, v);
        nw[v] += weights[u].x * value;
        ne[v] += weights[u].y * value;
        sw[v] += weights[u].z * value;
        se[v] += weights[u].w * value;
      }
      if (const unsigned count = steps >> (8 * u) & 0xff) {
        const int pixel = list.pixels[k + u];
        step(pixel);
        if (count == 2) {
          step(pixel + 1);
        }
      }
    }
  }
}

// If taps have parameters of their own, each slot has its own product. row_t is the type of the entries in shared
// memory: float for half types of at most 32 channels, so that each lane has one.
template <class scalar_t, class row_t, int kAxes, bool kSplat, bool kDot, Source kSource, bool kZeros>
__global__ void __launch_bounds__(kMostSlots, kBlocksPerMultiprocessor<kAxes>) tile_kernel(
    const UnfoldParams p,
    const FastAxis d,  // with three axes
    const FastAxis h,
    const FastAxis w,
    const ColumnsView columns,          // [B, C * kH * kW, L]
    const PositionsView positions,      // [B, channels, *out]
    const Sums sums,                    // [B * G, channel blocks, sums_plane, kChannelBlock]
    const uint4* __restrict__ packets,  // [B, G, packets per group, packed_plane]
    const Term dot_term,
    const int dots,
    const int multiples,          // for an affine map
    float* __restrict__ partial,  // [splits, B, G, positions_per_group, dots, multiples, L]
    const int tiles_w,
    const int tiles_h,
    const int tiles,
    const int splits,  // of a group's chunks of channels
    const int chunks_of_split) {
  constexpr int kElements = kPacket<scalar_t>;
  constexpr int kChannels = kChunk<row_t>;
  constexpr bool kPerTap = per_tap(kSource);
  constexpr bool kMap = kSource == Source::kAffine;
  constexpr int kPackets = kChannels / kElements;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<kAxes>*>(memory);

  let_next_begin();
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int split = static_cast<int>(blockIdx.x / tiles % splits);
  const int64_t group = blockIdx.x / tiles / splits;  // among the batch's B * G
  const int64_t b = group / p.groups;
  const int64_t g = group % p.groups;
  const int warp = threadIdx.x / kLanes;
  const int position = threadIdx.x % kPositions;
  const int first_i = tile / tiles_w % tiles_h * kTileH;
  const int first_j = tile % tiles_w * kTileW;
  const int e = kAxes == 3 ? tile / tiles_w / tiles_h : 0;
  const int i = first_i + position / kTileW;
  const int j = first_j + position % kTileW;
  const bool inside = i < h.out_size && j < w.out_size;
  const int per_group = static_cast<int>(p.channels / p.groups);
  const int64_t length = positions_of(p);
  const int64_t out_position = (static_cast<int64_t>(e) * h.out_size + i) * w.out_size + j;
  const int taps = static_cast<int>(taps_of(p));
  const int taps_of_pass = blockDim.x / kPositions;

  // A position beyond the edge has no neighbours at any tap.
  float parameter_d = 0;
  float parameter_h = std::numeric_limits<float>::quiet_NaN();
  float parameter_w = parameter_h;
  const int64_t at = b * positions.batch + e * positions.axis[0] + i * positions.axis[1] + j * positions.axis[2];
  const auto load = [&](int tap) {
    float distance[kAxes];
    float parameter[kAxes];
    if constexpr (kAxes == 3) {
      distance[0] = d.distance(tap / w.kernel / h.kernel);
    }
    distance[kAxes - 2] = h.distance(tap / w.kernel % h.kernel);
    distance[kAxes - 1] = w.distance(tap % w.kernel);
    load_parameters<scalar_t>(p, positions, kSource, at, g, tap, distance, parameter);
    parameter_d = kAxes == 3 ? parameter[0] : 0.f;
    parameter_h = parameter[kAxes - 2];
    parameter_w = parameter[kAxes - 1];
  };
  if (by_axis(kSource) && inside) {
    load(0);
  }
  const int64_t channel_stride = taps * columns.row;
  const auto* const entries = static_cast<const scalar_t*>(columns.data) + b * columns.batch +
      g * per_group * channel_stride + out_position * columns.position;
  [[maybe_unused]] const int pitch = static_cast<int>(packed_row(p));
  [[maybe_unused]] const int layer = static_cast<int>(packed_layer(p));
  [[maybe_unused]] const int64_t plane = packed_plane(p);
  [[maybe_unused]] const uint4* const image = packets + group * packets_per_group<scalar_t>(p) * plane +
      ((kAxes == 3 ? layer : 0) + pitch + 1) * static_cast<int>(kBorderLow);
  [[maybe_unused]] float dots_of[kAxes] = {};  // w.r.t. the position along each axis, times its derivative

  // The sums of a window, or of tap `entry`.
  [[maybe_unused]] const auto write_dots = [&](int entry) {
    const bool finite = is_finite(parameter_d) && is_finite(parameter_h) && is_finite(parameter_w);
    const int64_t entries = kPerTap ? taps : 1;
    float* const to = partial + ((split * p.batch * p.groups + group) * entries + entry) * dots * length + out_position;
    float sum = 0;
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      const float value = finite ? dots_of[a] : std::numeric_limits<float>::quiet_NaN();
      if (dots > 1) {
        to[a * length] = value;
      } else {
        const int count = dot_term.count[axis_bit(kMaxAxes - kAxes + a)];
        sum += count != 0 ? count * value : 0.f;
      }
    }
    if (dots == 1) {
      to[0] = sum;
    }
  };

  for (int first_tap = 0; first_tap < taps; first_tap += taps_of_pass) {
    const int tap_index = first_tap + static_cast<int>(threadIdx.x) / kPositions;
    const bool active = inside && tap_index < taps;
    const int m = tap_index / w.kernel % h.kernel;
    const int n = tap_index % w.kernel;
    if (!by_axis(kSource) && active) {
      load(tap_index);
    }
    Tap tap;
    tap.y = h.template neighbours_of<kZeros>(
        kSource, m, h.pixel(i), active ? parameter_h : std::numeric_limits<float>::quiet_NaN());
    tap.x = w.template neighbours_of<kZeros>(kSource, n, w.pixel(j), parameter_w);
    if constexpr (kAxes == 3) {
      const int l = tap_index / w.kernel / h.kernel;
      tap.z = d.template neighbours_of<kZeros>(kSource, l, d.pixel(e), parameter_d);
      tap.weights_d = axis_weights(tap.z.fraction, tap.z.direction * d.slope(kSource, l));
    }
    tap.weights_h = axis_weights(tap.y.fraction, tap.y.direction * h.slope(kSource, m));
    tap.weights_w = axis_weights(tap.x.fraction, tap.x.direction * w.slope(kSource, n));

    [[maybe_unused]] int size[kAxes - 1];
    [[maybe_unused]] int of_warp[kAxes - 1];
    if constexpr (kSplat) {
#pragma unroll 1
      for (int side = 0; side < kAxes - 1; ++side) {
        int slots = 0;
        const int each = make_list<kAxes>(
            p, tap, side, table_start<kSource>(h, first_i + kTileH / 2, kTableH),
            table_start<kSource>(w, first_j + kTileW / 2, kTableW), shared, slots);
        size[kAxes == 3 && side == 1 ? 1 : 0] = slots;
        of_warp[kAxes == 3 && side == 1 ? 1 : 0] = each;
      }
    }
    if (first_tap == 0) {
      wait_for_previous();
    }

    for (int first = split * chunks_of_split * kChannels;
         first < min(per_group, (split + 1) * chunks_of_split * kChannels); first += kChannels) {
      // Positions across lanes.
      if (active) {
        const scalar_t* from = entries + first * channel_stride + tap_index * columns.row;
        [[maybe_unused]] const uint4* corner = image + static_cast<int64_t>(first / kElements) * plane +
            ((kAxes == 3 ? tap.z.pixel * layer : 0) + tap.y.pixel * pitch + tap.x.pixel);
        [[maybe_unused]] float4 products[kAxes - 1] = {};  // per layer, with the corners nw, ne, sw, se
        const auto take = [&](int q, const Raw<scalar_t>(&raw)[kElements], bool has_packet) {
          if constexpr (kDot) {
            if (has_packet) {
#pragma unroll
              for (int side = 0; side < kAxes - 1; ++side) {
                const uint4* const first_corner = corner + side * layer;
                const uint4 nw = __ldg(first_corner);
                const uint4 ne = __ldg(first_corner + 1);
                const uint4 sw = __ldg(first_corner + pitch);
                const uint4 se = __ldg(first_corner + pitch + 1);
#pragma unroll
                for (int k = 0; k < kElements; ++k) {
                  const float value = from_raw<scalar_t>(raw[k]);
                  products[side].x += value * element<scalar_t>(nw, k);
                  products[side].y += value * element<scalar_t>(ne, k);
                  products[side].z += value * element<scalar_t>(sw, k);
                  products[side].w += value * element<scalar_t>(se, k);
                }
              }
            }
            corner += plane;
          }
          if constexpr (kSplat) {
            if constexpr (std::is_same_v<row_t, float>) {
              unsigned* const row = &shared.rows[threadIdx.x][q * kElements];
#pragma unroll
              for (int k = 0; k < kElements; ++k) {
                row[k] = __float_as_uint(from_raw<scalar_t>(raw[k]));
              }
            } else {
              unsigned* const row = &shared.rows[threadIdx.x][q * 4];
#pragma unroll
              for (int k = 0; k < 4; ++k) {
                row[k] = raw[2 * k] | static_cast<unsigned>(raw[2 * k + 1]) << 16;
              }
            }
          }
        };
        if (per_group - first >= kChannels) {
#pragma unroll
          for (int q = 0; q < kPackets; ++q) {
            Raw<scalar_t> raw[kElements];
#pragma unroll
            for (int k = 0; k < kElements; ++k, from += channel_stride) {
              raw[k] = __ldcs(reinterpret_cast<const Raw<scalar_t>*>(from));
            }
            take(q, raw, true);
          }
        } else {
#pragma unroll 1
          for (int q = 0; q < kPackets; ++q) {
            const int here = per_group - first - q * kElements;  // channels
            Raw<scalar_t> raw[kElements];
#pragma unroll
            for (int k = 0; k < kElements; ++k, from += channel_stride) {
              raw[k] = k < here ? __ldcs(reinterpret_cast<const Raw<scalar_t>*>(from)) : Raw<scalar_t>(0);
            }
            take(q, raw, here > 0);
          }
        }
        if constexpr (kDot) {
          // The corner weights, differentiated along one axis; the factor that a side's two corners share is pulled
          // out.
          const auto& y = tap.weights_h;
          const auto& x = tap.weights_w;
          float value[kAxes - 1];
          float by_h = 0;
          float by_w = 0;
#pragma unroll
          for (int side = 0; side < kAxes - 1; ++side) {
            const float4& c = products[side];
            const float share = kAxes == 2 ? 1.f : side == 0 ? tap.weights_d.low[0] : tap.weights_d.high[0];
            by_h += share * (x.low[0] * (c.z - c.x) + x.high[0] * (c.w - c.y));
            by_w += share * (y.low[0] * (c.y - c.x) + y.high[0] * (c.w - c.z));
            value[side] =
                y.low[0] * (x.low[0] * c.x + x.high[0] * c.y) + y.high[0] * (x.low[0] * c.z + x.high[0] * c.w);
          }
          dots_of[kAxes - 2] += y.high[1] * by_h;
          dots_of[kAxes - 1] += x.high[1] * by_w;
          if constexpr (kAxes == 3) {
            dots_of[0] += tap.weights_d.high[1] * (value[1] - value[0]);
          }
        }
      }
      if constexpr (kSplat) {
        __syncthreads();

        // Channels across lanes.
        const int64_t stride = sums_plane(p) * kChannelBlock;
        const ChunkSums chunk_sums = {
            sums, FixedPoint<float>(sums),
            (group * ceil_div(per_group, kChannelBlock) + first / kChannelBlock) * stride, stride, per_group - first};
#pragma unroll
        for (int side = 0; side < kAxes - 1; ++side) {
          add_list<row_t>(
              shared.lists[side], shared.rows[0], warp * of_warp[side],
              min((warp + 1) * of_warp[side], ceil_div(size[side], kAtOnce) * kAtOnce), chunk_sums,
              static_cast<int>(sums_row(p)));
        }
        __syncthreads();
      }
    }
    if constexpr (kDot && kPerTap) {
      if (active) {
        write_dots(tap_index);
      }
#pragma unroll
      for (float& dot : dots_of) {
        dot = 0;
      }
    }
    if constexpr (kDot && kMap) {  // over the taps of the pass, times their distances
      const bool finite = is_finite(parameter_h);
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        shared.dots[a][threadIdx.x] = finite ? dots_of[a] : std::numeric_limits<float>::quiet_NaN();
        dots_of[a] = 0;
      }
      __syncthreads();
      for (int item = threadIdx.x; item < dots * multiples * kPositions; item += blockDim.x) {
        const int of_item = item % kPositions;
        const int entry = item / kPositions;
        const int row = first_i + of_item / kTileW;
        const int column = first_j + of_item % kTileW;
        if (row >= h.out_size || column >= w.out_size) {
          continue;
        }
        // The axis along which the entry is multiplied by a distance; kMaxAxes: none.
        const int along = entry % multiples == multiples - 1 ? kMaxAxes : entry % multiples + p.first_axis();
        float sum = 0;
        for (int k = 0; k < min(taps_of_pass, taps - first_tap); ++k) {
          const int t = first_tap + k;
          const float distance[kMaxAxes] = {
              d.distance(t / w.kernel / h.kernel), h.distance(t / w.kernel % h.kernel), w.distance(t % w.kernel)};
          float value = 0;
#pragma unroll
          for (int a = 0; a < kAxes; ++a) {
            constexpr int kFirst = kMaxAxes - kAxes;
            const int q = axis_bit(kFirst + a);
            if (dots > 1 ? a == entry / multiples : dot_term.count[q] != 0) {
              const float factor = dots > 1 ? 1.f : term_factor(dot_term, q, distance);
              value += factor * shared.dots[a][k * kPositions + of_item];
            }
          }
          sum += along == 0 ? value * distance[0]
              : along == 1  ? value * distance[1]
              : along == 2  ? value * distance[2]
                            : value;
        }
        float* const to = partial + ((split * p.batch * p.groups + group) * dots * multiples + entry) * length +
            (static_cast<int64_t>(e) * h.out_size + row) * w.out_size + column;
        *to = first_tap == 0 ? sum : *to + sum;
      }
      __syncthreads();
    }
  }

  if constexpr (kDot && by_axis(kSource)) {
#pragma unroll
    for (int a = 0; a < kAxes; ++a) {
      shared.dots[a][threadIdx.x] = dots_of[a];
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < kPositions && inside) {
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        dots_of[a] = 0;
        for (int k = position; k < static_cast<int>(blockDim.x); k += kPositions) {
          dots_of[a] += shared.dots[a][k];
        }
      }
      write_dots(0);
    }
  }
}

// Whether there are no more channels than lanes. (With two axes the gain would not justify more kernels.)
bool narrow(const UnfoldParams& p) { return fast_axes(p) == 3 && p.channels / p.groups <= kLanes; }

struct Grid {
  int64_t tiles_w, tiles_h, tiles, splits, chunks_of_split;
};

// Several blocks share the chunks of a tile if that takes less time. Time is counted in rounds of as many blocks as the
// GPU has room for; making a list takes a quarter of the time of a chunk.
Grid grid_for(const UnfoldParams& p, c10::ScalarType type) {
  int device = 0;
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t chunk = kLanes * 4 / (narrow(p) ? 4 : static_cast<int64_t>(c10::elementSize(type)));
  const int64_t chunks = ceil_div<int64_t>(p.channels / p.groups, chunk);
  Grid grid = {};
  grid.tiles_w = ceil_div<int64_t>(p.axis[2].out_size, kTileW);
  grid.tiles_h = ceil_div<int64_t>(p.axis[1].out_size, kTileH);
  grid.tiles = grid.tiles_w * grid.tiles_h * p.axis[0].out_size;
  constexpr int64_t kMostSplits = 64;
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int64_t splits = 1; splits <= std::min(chunks, kMostSplits); ++splits) {
    const int64_t of_split = ceil_div(chunks, splits);
    const int64_t rounds = ceil_div<int64_t>(
        p.batch * p.groups * grid.tiles * splits,
        multiprocessors * (fast_axes(p) == 3 ? kBlocksPerMultiprocessor<3> : kBlocksPerMultiprocessor<2>));
    const int64_t time = rounds * (1 + 4 * of_split);
    if (time < best) {
      best = time;
      grid.splits = ceil_div(chunks, of_split);
      grid.chunks_of_split = of_split;
    }
  }
  return grid;
}

}  // namespace

int64_t channel_splits(const UnfoldParams& p, c10::ScalarType type) { return grid_for(p, type).splits; }

void launch_tiles(
    const UnfoldParams& p,
    c10::ScalarType type,
    const ColumnsView& columns,
    const PositionsView& positions,
    const Sums& sums,
    const void* packets,
    const Term& dot_term,
    int dots,
    int multiples,
    float* partial,
    cudaStream_t stream) {
  const auto grid = grid_for(p, type);
  const auto blocks = grid_of(p.batch * p.groups * grid.splits * grid.tiles);
  const int taps = static_cast<int>(taps_of(p));
  const int threads = ceil_div(taps, ceil_div(taps, kMostTaps)) * kPositions;
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto launch_as = [&](auto row, auto axes) {
      using row_t = decltype(row);
      dispatch_fast(p, [&](auto source, auto zeros) {
        constexpr int kAxes = decltype(axes)::value;
        constexpr int kBytes = sizeof(Shared<kAxes>);
        constexpr Source kSource = decltype(source)::value;
        constexpr bool kZeros = decltype(zeros)::value;
        const auto kernel = sums.data == nullptr
            ? counted<tile_kernel<scalar_t, row_t, kAxes, false, true, kSource, kZeros>>()
            : packets == nullptr ? counted<tile_kernel<scalar_t, row_t, kAxes, true, false, kSource, kZeros>>()
                                 : counted<tile_kernel<scalar_t, row_t, kAxes, true, true, kSource, kZeros>>();
        C10_CUDA_CHECK(cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
        const auto launch = [&](const auto&... arguments) {
          if (packets != nullptr && sums.largest == nullptr) {  // directly after launch_pack
            launch_after(kernel.launch(), blocks, threads, kBytes, stream, arguments...);
          } else {
            kernel.launch()<<<blocks, threads, kBytes, stream>>>(arguments...);
          }
        };
        launch(
            p, fast_axis(p, 0), fast_axis(p, 1), fast_axis(p, 2), columns, positions, sums,
            static_cast<const uint4*>(packets), dot_term, dots, multiples, partial, static_cast<int>(grid.tiles_w),
            static_cast<int>(grid.tiles_h), static_cast<int>(grid.tiles), static_cast<int>(grid.splits),
            static_cast<int>(grid.chunks_of_split));
      });
    };
    if (fast_axes(p) == 2) {
      launch_as(scalar_t(), std::integral_constant<int, 2>());
    } else if (narrow(p)) {
      launch_as(float(), std::integral_constant<int, 3>());
    } else {
      launch_as(scalar_t(), std::integral_constant<int, 3>());
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
