// SPDX-License-Identifier: MIT
// splat and dot, both or either, where they are wanted most: order 0 of splat and order 1 of dot, in float, half and
// bfloat16.

// NOTE [ Tiles ]
// Each entry of columns is added to four pixels. Done with atomic additions in memory that is all the time a backward
// takes, so a block adds up what its own entries give to a pixel first, in registers. It has a tile of output positions
// and, at a time, some taps of them (a pass). A thread owns a slot: a tap of a position.
//
// A pass begins with a list of its slots, sorted by the pixel northwest of the tap. It is the same for all channels.
// Then, for each chunk of channels, in turn:
// - Positions across lanes. A thread multiplies the entries of its slot with the four corners of its tap, read as
//   packets (NOTE [ Packets ]), and sums over the channels. The derivatives by the rates are combinations of these four
//   sums, so they cost next to nothing for one rate or two. It leaves the entries in shared memory, a row for a slot.
// - Channels across lanes. The warps share the list out, and each walks along its part, along the rows of the image
//   that is, with sums for four pixels: those around the taps that it is at. For each slot it reads the row, 4 bytes to
//   a lane, and adds it to the four. One pixel to the east, the two sums in the west are added to memory, and those in
//   the east become those in the west.
//
// The list is sorted by counting. Pixels are mapped to buckets, row and column modulo the size of a table, which is
// larger than what the windows of a tile reach as a rule. Where it is not, pixels share a bucket, and a pixel's sums
// may go to memory in several parts. Only speed depends on it. Warps count for themselves, in the order of their lanes,
// so that the list, and what a block adds, is the same in every run. The order in which blocks add is not, unless sums
// are fixed point (NOTE [ Fixed point ]).

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
constexpr int kMostTaps = 9;  // of a pass
constexpr int kMostSlots = kPositions * kMostTaps;
constexpr int kMostWarps = kMostSlots / kLanes;

// Blocks that should fit on a multiprocessor together, so that some read while others add.
constexpr int kBlocksPerMultiprocessor = 4;

// Channels of a chunk: 4 bytes for each lane.
template <class scalar_t>
constexpr int kChunk = kLanes * 4 / sizeof(scalar_t);

// Pixels that the table of buckets has room for. In the middle of it is the middle of the tile.
constexpr int kTableW = 32;
constexpr int kTableH = 16;
constexpr int kBuckets = kTableW * kTableH;

constexpr int kAtOnce = 4;  // slots of the list that a warp reads ahead

struct Shared {
  static constexpr int kRow = kLanes + 1;  // the one spreads the slots over the banks
  union {
    unsigned rows[kMostSlots][kRow];                          // entries of columns
    alignas(16) unsigned short counts[kMostWarps][kBuckets];  // while the list is made: of each warp's slots
    unsigned pairs[kMostWarps][kBuckets / 2];                 // the same, two buckets at a time
    float dots[2][kMostSlots];                                // at the end
  };
  // The list.
  alignas(16) float4 weights[kMostSlots];      // of the corners: nw, ne, sw, se
  alignas(16) int offsets[kMostSlots];         // of the slot in rows, in bytes
  int pixels[kMostSlots];                      // northwest, in sums
  alignas(4) unsigned char steps[kMostSlots];  // to the east, to the next slot's pixel: 0, 1, or 2 if it is elsewhere
  unsigned short starts[kBuckets];             // in the list
  int totals[kMostWarps];
};
static_assert(kMostSlots % kAtOnce == 0 && kAtOnce == 4);

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

// A tap of one window.
struct Tap {
  Neighbours<float, int> y, x;
  AxisWeights<float> weights_h, weights_w;  // [1]: differentiated by the parameter
};

// The first pixel of a table along an axis, in whose middle is the centre of the window at out_index.
__device__ __forceinline__ int table_start(const FastAxis& axis, int out_index, int table) {
  return axis.pixel(out_index) + axis.tap_step * (axis.kernel - 1) / 2 - table / 2;
}

// Makes the list of a pass. Returns how many slots each warp gets, a multiple of kAtOnce, and in `size` how many there
// are.
__device__ __forceinline__ int make_list(
    const Tap& tap, int first_row, int first_column, int pitch, Shared& shared, int& size) {
  const int lane = threadIdx.x % kLanes;
  const int warp = threadIdx.x / kLanes;
  const int threads = blockDim.x;
  const int warps = threads / kLanes;

  __syncthreads();  // nobody is at the rows
#pragma unroll 1
  for (int k = threadIdx.x; k < warps * kBuckets / 8; k += threads) {
    reinterpret_cast<uint4*>(shared.counts)[k] = {0, 0, 0, 0};
  }
  __syncthreads();

  const bool exists = tap.y.pixel != kNoPixel && tap.x.pixel != kNoPixel;
  const int bucket = exists
      ? ((tap.y.pixel - first_row) & (kTableH - 1)) * kTableW + ((tap.x.pixel - first_column) & (kTableW - 1))
      : -1;
  const unsigned peers = __match_any_sync(0xffffffffu, bucket);
  const int rank = __popc(peers & ((1u << lane) - 1));
  if (exists && rank == 0) {
    shared.counts[warp][bucket] = static_cast<unsigned short>(__popc(peers));
  }
  __syncthreads();

  // Sums before each warp of a bucket, and before each bucket. A thread has some pairs of neighbouring buckets.
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

  const int pixel = (tap.y.pixel + 1) * pitch + tap.x.pixel + 1;
  int at = 0;
  if (exists) {
    at = shared.starts[bucket] + shared.counts[warp][bucket] + rank;
    shared.weights[at] = {
        tap.weights_h.low[0] * tap.weights_w.low[0], tap.weights_h.low[0] * tap.weights_w.high[0],
        tap.weights_h.high[0] * tap.weights_w.low[0], tap.weights_h.high[0] * tap.weights_w.high[0]};
    shared.offsets[at] = static_cast<int>(threadIdx.x) * Shared::kRow * 4;
    shared.pixels[at] = pixel;
  }
  // What fills up the last slots that are read at once is added to sums that go nowhere.
  if (const int fill = size + threadIdx.x; threadIdx.x < kAtOnce && fill < kMostSlots) {
    shared.offsets[fill] = 0;
    shared.steps[fill] = 0;
  }
  __syncthreads();

  const int of_warp = ceil_div(size, warps * kAtOnce) * kAtOnce;
  if (exists) {
    const bool last = at + 1 == size || (at + 1) % of_warp == 0;
    const unsigned step = last ? 2 : static_cast<unsigned>(shared.pixels[at + 1] - pixel);
    shared.steps[at] = static_cast<unsigned char>(min(step, 2u));
  }
  return of_warp;
}

// Where the sums of a chunk's channels are in memory, and which a lane has: one in float, two neighbours in half types.
struct ChunkSums {
  const Sums& sums;
  FixedPoint<float> fixed;
  int64_t first;   // pixel 0 and channel 0 of the chunk
  int64_t stride;  // between blocks of channels
  int channels;    // that there are

  // All lanes together.
  template <int kValues>
  __device__ __forceinline__ void add(int64_t pixel, const float (&values)[kValues]) const {
    const int lane = threadIdx.x % kLanes;
    const int64_t at = first + pixel * kChannelBlock;
    if (sums.largest != nullptr) {
      // A lane adds to channel `lane` of each block, whichever has its value: 8 bytes from lane to lane, not 16.
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

// Walks along [begin, end) of the list, multiples of kAtOnce.
template <class scalar_t>
__device__ __forceinline__ void add_list(const Shared& shared, int begin, int end, const ChunkSums& sums, int pitch) {
  constexpr int kValues = 4 / sizeof(scalar_t);
  const char* const rows = reinterpret_cast<const char*>(&shared.rows[0][threadIdx.x % kLanes]);
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
    const int4 offsets = *reinterpret_cast<const int4*>(&shared.offsets[k]);
    const unsigned steps = *reinterpret_cast<const unsigned*>(&shared.steps[k]);
    float4 weights[kAtOnce];
    unsigned words[kAtOnce];
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int offset = u == 0 ? offsets.x : u == 1 ? offsets.y : u == 2 ? offsets.z : offsets.w;
      words[u] = *reinterpret_cast<const unsigned*>(rows + offset);
      weights[u] = shared.weights[k + u];
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
        const int pixel = shared.pixels[k + u];
        step(pixel);
        if (count == 2) {
          step(pixel + 1);
        }
      }
    }
  }
}

// kPerTap: whether each tap has parameters of its own. Then each slot has a product of its own, too.
template <class scalar_t, bool kSplat, bool kDot, bool kPerTap, bool kZeros>
__global__ void __launch_bounds__(kMostSlots, kBlocksPerMultiprocessor) tile_kernel(
    const UnfoldParams p,
    const FastAxis h,
    const FastAxis w,
    const ColumnsView columns,          // [B, C * kH * kW, L]
    const PositionsView positions,      // [B, channels, *out]
    const Sums sums,                    // [B * G, channel blocks, sums_plane, kChannelBlock]
    const uint4* __restrict__ packets,  // [B, G, packets per group, H + 3, W + 3]
    const Term dot_term,
    const int dots,
    float* __restrict__ partial,  // [splits, B, G, positions_per_group, dots, L]
    const int tiles_w,
    const int tiles,
    const int splits,  // of a group's chunks of channels
    const int chunks_of_split) {
  constexpr int kElements = kPacket<scalar_t>;
  constexpr int kChannels = kChunk<scalar_t>;
  constexpr int kPackets = kChannels / kElements;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared*>(memory);

  let_next_begin();
  const int tile = static_cast<int>(blockIdx.x % tiles);
  const int split = static_cast<int>(blockIdx.x / tiles % splits);
  const int64_t group = blockIdx.x / tiles / splits;  // of the batch's B * G
  const int64_t b = group / p.groups;
  const int64_t g = group % p.groups;
  const int warp = threadIdx.x / kLanes;
  const int position = threadIdx.x % kPositions;
  const int i = tile / tiles_w * kTileH + position / kTileW;
  const int j = tile % tiles_w * kTileW + position % kTileW;
  const bool inside = i < h.out_size && j < w.out_size;
  const int per_group = static_cast<int>(p.channels / p.groups);
  const int64_t length = p.axis[1].out_size * p.axis[2].out_size;
  const int64_t out_position = static_cast<int64_t>(i) * w.out_size + j;
  const int taps = h.kernel * w.kernel;
  const int taps_of_pass = blockDim.x / kPositions;

  // A position beyond the edge is one with no neighbours at any tap.
  float parameter_h = std::numeric_limits<float>::quiet_NaN();
  float parameter_w = parameter_h;
  const int64_t at = b * positions.batch + i * positions.axis[1] + j * positions.axis[2];
  const auto load_parameters = [&](int tap) {
    parameter_h = load_parameter<scalar_t>(p, positions, at, g, tap, 1);
    parameter_w = load_parameter<scalar_t>(p, positions, at, g, tap, 2);
  };
  if (!kPerTap && inside) {
    load_parameters(0);
  }
  const int64_t channel_stride = taps * columns.row;
  const auto* const entries = static_cast<const scalar_t*>(columns.data) + b * columns.batch +
      g * per_group * channel_stride + out_position * columns.position;
  [[maybe_unused]] const int pitch = w.size + static_cast<int>(padded(0));
  [[maybe_unused]] const int plane = (h.size + static_cast<int>(padded(0))) * pitch;
  [[maybe_unused]] const uint4* const image =
      packets + group * packets_per_group<scalar_t>(p) * plane + (pitch + 1) * static_cast<int>(kBorderLow);
  [[maybe_unused]] float dot_h = 0;
  [[maybe_unused]] float dot_w = 0;

  // The sums of a window, or of tap `entry`.
  [[maybe_unused]] const auto write_dots = [&](int entry) {
    if (!is_finite(parameter_h) || !is_finite(parameter_w)) {
      dot_h = dot_w = std::numeric_limits<float>::quiet_NaN();
    }
    const int64_t entries = kPerTap ? taps : 1;
    float* const to = partial + ((split * p.batch * p.groups + group) * entries + entry) * dots * length + out_position;
    if (dots == 1) {
      to[0] = dot_term.count[axis_bit(1)] * dot_h + dot_term.count[axis_bit(2)] * dot_w;
    } else {
      to[0] = dot_h;
      to[length] = dot_w;
    }
  };

  for (int first_tap = 0; first_tap < taps; first_tap += taps_of_pass) {
    const int tap_index = first_tap + static_cast<int>(threadIdx.x) / kPositions;
    const bool active = inside && tap_index < taps;
    const int m = tap_index / w.kernel;
    const int n = tap_index % w.kernel;
    if (kPerTap && active) {
      load_parameters(tap_index);
    }
    Tap tap;
    tap.y =
        h.template neighbours_of<kZeros>(m, h.pixel(i), active ? parameter_h : std::numeric_limits<float>::quiet_NaN());
    tap.x = w.template neighbours_of<kZeros>(n, w.pixel(j), parameter_w);
    tap.weights_h = axis_weights(tap.y.fraction, tap.y.direction * h.slope(m));
    tap.weights_w = axis_weights(tap.x.fraction, tap.x.direction * w.slope(n));

    [[maybe_unused]] const int sums_pitch = w.size + 1;
    [[maybe_unused]] int size = 0;
    [[maybe_unused]] int of_warp = 0;
    if constexpr (kSplat) {
      of_warp = make_list(
          tap, table_start(h, tile / tiles_w * kTileH + kTileH / 2, kTableH),
          table_start(w, tile % tiles_w * kTileW + kTileW / 2, kTableW), sums_pitch, shared, size);
    }
    if (first_tap == 0) {
      wait_for_previous();
    }

    for (int first = split * chunks_of_split * kChannels;
         first < min(per_group, (split + 1) * chunks_of_split * kChannels); first += kChannels) {
      // Positions across lanes.
      if (active) {
        const scalar_t* from = entries + first * channel_stride + tap_index * columns.row;
        [[maybe_unused]] const uint4* corner =
            image + static_cast<int64_t>(first / kElements) * plane + (tap.y.pixel * pitch + tap.x.pixel);
        [[maybe_unused]] float4 products = {0, 0, 0, 0};  // with the corners nw, ne, sw, se
        const auto take = [&](int q, const Raw<scalar_t>(&raw)[kElements], bool has_packet) {
          if constexpr (kDot) {
            if (has_packet) {
              const uint4 nw = __ldg(corner);
              const uint4 ne = __ldg(corner + 1);
              const uint4 sw = __ldg(corner + pitch);
              const uint4 se = __ldg(corner + pitch + 1);
#pragma unroll
              for (int k = 0; k < kElements; ++k) {
                const float value = from_raw<scalar_t>(raw[k]);
                products.x += value * element<scalar_t>(nw, k);
                products.y += value * element<scalar_t>(ne, k);
                products.z += value * element<scalar_t>(sw, k);
                products.w += value * element<scalar_t>(se, k);
              }
            }
            corner += plane;
          }
          if constexpr (kSplat) {
            unsigned* const row = &shared.rows[threadIdx.x][q * 4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              if constexpr (kElements == 4) {
                row[k] = __float_as_uint(raw[k]);
              } else {
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
          // The corner weights, differentiated along one axis; what the two corners of a side share is taken out.
          const auto& y = tap.weights_h;
          const auto& x = tap.weights_w;
          dot_h += y.high[1] * (x.low[0] * (products.z - products.x) + x.high[0] * (products.w - products.y));
          dot_w += x.high[1] * (y.low[0] * (products.y - products.x) + y.high[0] * (products.w - products.z));
        }
      }
      if constexpr (kSplat) {
        __syncthreads();

        // Channels across lanes.
        const int64_t stride = sums_plane(p) * kChannelBlock;
        const ChunkSums chunk_sums = {
            sums, FixedPoint<float>(sums),
            (group * ceil_div(per_group, kChannelBlock) + first / kChannelBlock) * stride, stride, per_group - first};
        add_list<scalar_t>(
            shared, warp * of_warp, min((warp + 1) * of_warp, ceil_div(size, kAtOnce) * kAtOnce), chunk_sums,
            sums_pitch);
        __syncthreads();
      }
    }
    if constexpr (kDot && kPerTap) {
      if (active) {
        write_dots(tap_index);
      }
      dot_h = dot_w = 0;
    }
  }

  if constexpr (kDot && !kPerTap) {
    shared.dots[0][threadIdx.x] = dot_h;
    shared.dots[1][threadIdx.x] = dot_w;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < kPositions && inside) {
      dot_h = dot_w = 0;
      for (int k = position; k < static_cast<int>(blockDim.x); k += kPositions) {
        dot_h += shared.dots[0][k];
        dot_w += shared.dots[1][k];
      }
      write_dots(0);
    }
  }
}

struct Grid {
  int64_t tiles_w, tiles, splits, chunks_of_split;
};

// Several blocks share the chunks of a tile out where that takes less time, counted in rounds of as many blocks as the
// GPU has room for, with a list in the time of a quarter of a chunk.
Grid grid_for(const UnfoldParams& p, c10::ScalarType type) {
  int device = 0;
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t chunk = kLanes * 4 / static_cast<int64_t>(c10::elementSize(type));
  const int64_t chunks = ceil_div<int64_t>(p.channels / p.groups, chunk);
  Grid grid = {};
  grid.tiles_w = ceil_div<int64_t>(p.axis[2].out_size, kTileW);
  grid.tiles = grid.tiles_w * ceil_div<int64_t>(p.axis[1].out_size, kTileH);
  constexpr int64_t kMostSplits = 64;
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int64_t splits = 1; splits <= std::min(chunks, kMostSplits); ++splits) {
    const int64_t of_split = ceil_div(chunks, splits);
    const int64_t rounds =
        ceil_div<int64_t>(p.batch * p.groups * grid.tiles * splits, multiprocessors * kBlocksPerMultiprocessor);
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
    float* partial,
    cudaStream_t stream) {
  const auto grid = grid_for(p, type);
  const auto blocks = grid_of(p.batch * p.groups * grid.splits * grid.tiles);
  const int taps = static_cast<int>(taps_of(p));
  const int threads = ceil_div(taps, ceil_div(taps, kMostTaps)) * kPositions;
  constexpr int kBytes = sizeof(Shared);
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    dispatch_fast(p, [&](auto of_tap, auto zeros) {
      constexpr bool kPerTap = decltype(of_tap)::value;
      constexpr bool kZeros = decltype(zeros)::value;
      const auto kernel = sums.data == nullptr ? counted<tile_kernel<scalar_t, false, true, kPerTap, kZeros>>()
          : packets == nullptr                 ? counted<tile_kernel<scalar_t, true, false, kPerTap, kZeros>>()
                                               : counted<tile_kernel<scalar_t, true, true, kPerTap, kZeros>>();
      C10_CUDA_CHECK(cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
      const auto launch = [&](const auto&... arguments) {
        if (packets != nullptr && sums.largest == nullptr) {  // straight after launch_pack
          launch_after(kernel.launch(), blocks, threads, kBytes, stream, arguments...);
        } else {
          kernel.launch()<<<blocks, threads, kBytes, stream>>>(arguments...);
        }
      };
      launch(
          p, fast_axis(p, 1), fast_axis(p, 2), columns, positions, sums, static_cast<const uint4*>(packets), dot_term,
          dots, partial, static_cast<int>(grid.tiles_w), static_cast<int>(grid.tiles), static_cast<int>(grid.splits),
          static_cast<int>(grid.chunks_of_split));
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
