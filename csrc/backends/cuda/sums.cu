// SPDX-License-Identifier: MIT
// The sums of windows, without columns.

// NOTE [ Sums kernel ]
// A block owns some output positions of a group and all its channels, and a thread owns a packet of 16 bytes of these:
// neighbouring threads read neighbouring packets of a pixel, one for each corner of a tap. A tap's place and its
// weights don't depend on the channel. So the block first computes them for some taps of all its positions, one thread
// for each, and leaves them in shared memory; then every thread goes through the taps.
//
// - With respect to the query: a thread sums what it has read, in registers.
// - With respect to the mask and the positions: a thread multiplies what it has read by the query, separately for each
//   corner, so that the value and every derivative take one product per corner, not per channel. The threads' products
//   for a position are added in the order of the channels, so the result is the same in every run.
//
// With respect to the input: sums_input.cu.

#include <algorithm>

#include "packets.h"
#include "sums.h"
#include "windows.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kMostPositions = 64;       // per block
constexpr int64_t kSharedBytes = 40960;  // per block, so that five of them fit on a multiprocessor

// Blocks per multiprocessor. Registers limit them, and the more there are, the better loads overlap.
template <int kAxes, bool kProducts>
constexpr int kBlocks = kAxes == 3 ? 2
    : kProducts                    ? 3
                                   : 4;

struct Shape {
  int packets;    // per group
  int positions;  // per block
  int taps;       // that are computed together
  int64_t position_blocks;
};

// What is known of a tap independently of its channels.
struct Located {
  int first;        // packets from the image's first pixel to the first corner's
  unsigned inside;  // bit c: whether corner c lies in the image
};

template <class scalar_t>
__device__ __forceinline__ uint4 to_packet(const float (&value)[kPacket<scalar_t>]) {
  uint4 packet;
  auto* const elements = reinterpret_cast<scalar_t*>(&packet);
#pragma unroll
  for (int k = 0; k < kPacket<scalar_t>; ++k) {
    elements[k] = static_cast<scalar_t>(value[k]);
  }
  return packet;
}

// Computes the tap that was begun: stores its place in `located`, and in `weights` those of the value and of every
// term.
template <class scalar_t, int kAxes>
__device__ __forceinline__ void locate(
    const Locator<scalar_t, kAxes>& locator,
    const SumsCall& call,
    int pixel_packets,
    int dots,
    Located& located,
    float* weights) {
  constexpr int kFirst = kMaxAxes - kAxes;
  constexpr int kCorners = 1 << kAxes;
  Neighbours<float, int> n[kAxes];
  locator.locate(n);
  AxisWeights<float> along[kAxes];
  float distance[kAxes];
  locator.distances(distance);
  int pixel = 0;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    along[a] = axis_weights(n[a].fraction, n[a].direction);
    pixel = pixel * locator.w.axis[kFirst + a].size + n[a].pixel;
  }
  located = {pixel * pixel_packets, locator.finite ? locator.corners_inside(n) : 0u};
  for (int d = 0; d <= dots; ++d) {
    const auto w = corner_weights(along, distance, d == 0 ? locator.w.p.term : call.terms[d - 1]);
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      weights[d * kCorners + c] = locator.finite ? w.corner[c] : std::numeric_limits<float>::quiet_NaN();
    }
  }
}

template <class scalar_t, int kAxes, bool kQuery, bool kProducts>
__global__ void __launch_bounds__(kThreads, kBlocks<kAxes, kProducts>)
    sums_kernel(const __grid_constant__ Windows w, const __grid_constant__ SumsCall call, const Shape shape) {
  constexpr int kCorners = 1 << kAxes;
  constexpr int kFirst = kMaxAxes - kAxes;
  constexpr int kElements = kPacket<scalar_t>;
  const UnfoldParams& p = w.p;
  const int dots = kProducts ? call.dots : 0;
  const int numbers = (1 + dots) * kCorners;
  const bool of_taps = kProducts && dots > 0 && per_tap(p.source);
  const int tile = shape.positions;
  const int packets = shape.packets;

  extern __shared__ float4 shared[];
  auto* const weights = reinterpret_cast<float*>(shared);
  auto* const located = reinterpret_cast<Located*>(weights + shape.taps * tile * numbers);
  // A thread's part for tap t, or parameter t, of its position. Rows are one longer than a tile, to avoid bank
  // conflicts.
  [[maybe_unused]] auto* const parts = reinterpret_cast<float*>(located + shape.taps * tile);
  [[maybe_unused]] const int part_row = tile + 1;
  [[maybe_unused]] const auto part = [&](int t, int packet, int row) -> float& {
    return parts[(t * packets + packet) * part_row + row];
  };

  const int taps = w.taps;
  const int64_t group = blockIdx.x / shape.position_blocks;  // among the batch's B * G
  const int64_t first_position = blockIdx.x % shape.position_blocks * tile;
  const int b = static_cast<int>(group / p.groups);
  const int g = static_cast<int>(group % p.groups);
  const int packet = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(threadIdx.y);
  const int thread = row * packets + packet;
  const int threads = tile * packets;
  const int64_t position = first_position + row;
  const bool here = position < w.length;
  const int64_t per_group = p.channels / p.groups;
  const int64_t per_mask = p.channels / call.mask_groups;
  const int64_t channel = g * per_group + packet * kElements;
  const int pixel_packets = static_cast<int>(p.channels / kElements);

  const scalar_t* mask = nullptr;
  if (call.mask.data != nullptr && here) {
    mask = static_cast<const scalar_t*>(call.mask.data) + b * call.mask.batch +
        channel / per_mask * taps * call.mask.channel + position * call.mask.position;
  }
  const auto* const weight =
      call.weight == nullptr ? nullptr : static_cast<const scalar_t*>(call.weight) + b * call.weight_batch + channel;
  const uint4* image[kCorners];  // packets of the channels, from which a tap's corner is addressed
#pragma unroll
  for (int c = 0; c < kCorners; ++c) {
    int64_t offset = 0;
    int64_t pitch = 1;
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      offset += (c & axis_bit(kFirst + a)) != 0 ? pitch : 0;
      pitch *= w.axis[kFirst + a].size;
    }
    image[c] = reinterpret_cast<const uint4*>(
        static_cast<const scalar_t*>(call.input) + (b * pixels_of(p) + offset) * p.channels + channel);
  }

  [[maybe_unused]] float query[kElements];
  if constexpr (kProducts) {
    const uint4 loaded = load_packet_if(
        here ? 1u : 0u,
        static_cast<const scalar_t*>(call.query) + (static_cast<int64_t>(b) * w.length + position) * p.channels +
            channel);
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      query[k] = element<scalar_t>(loaded, k);
    }
  }
  [[maybe_unused]] float by_query[kElements] = {};
  // Of each dot its products with the distances along every axis, then the dot itself.
  [[maybe_unused]] float by_parameter[kMaxAxes][kAxes + 1] = {};
  const auto is_wanted = [&](int e) { return e == kAxes || (call.multiples > 1 && kFirst + e >= p.first_axis()); };

  // A thread computes taps of one position.
  int index[kAxes];
  index_of<kAxes>(w, static_cast<int>(min(first_position + thread % tile, static_cast<int64_t>(w.length) - 1)), index);
  Locator<scalar_t, kAxes> locator(w, b, index);
  if (by_axis(p.source)) {
    locator.load_parameters(g, 0);
  }

  for (int start = 0; start < taps; start += shape.taps) {
    const int count = min(shape.taps, taps - start);
    __syncthreads();
    for (int t = thread / tile; t < count; t += packets) {
      const int e = t * tile + thread % tile;
      locator.begin(start + t);
      if (!by_axis(p.source)) {
        locator.load_parameters(g, start + t);
      }
      locate<scalar_t, kAxes>(locator, call, pixel_packets, dots, located[e], weights + e * numbers);
    }
    __syncthreads();
#pragma unroll 1
    for (int t = 0; t < count && here; ++t) {
      const int e = t * tile + row;
      const int tap = start + t;
      const auto [first, inside] = located[e];
      const float* const corner_weight = weights + e * numbers;
      float factor = 1;
      if (mask != nullptr) {
        factor = load(mask);
        mask += call.mask.channel;
      }
      uint4 corner[kCorners];
#pragma unroll
      for (int c = 0; c < kCorners; ++c) {
        corner[c] = load_packet_if(inside & 1u << c, image[c] + first);
      }
      [[maybe_unused]] float own[kElements];  // each channel's weight
      if (weight != nullptr) {
        const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(weight + static_cast<int64_t>(tap) * p.channels));
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          own[k] = element<scalar_t>(loaded, k);
        }
      }
      if constexpr (kQuery) {
        if (weight == nullptr) {
#pragma unroll
          for (int c = 0; c < kCorners; ++c) {
            const float share = factor * corner_weight[c];
#pragma unroll
            for (int k = 0; k < kElements; ++k) {
              by_query[k] = fmaf(share, element<scalar_t>(corner[c], k), by_query[k]);
            }
          }
        } else {
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            float value = 0;
#pragma unroll
            for (int c = 0; c < kCorners; ++c) {
              value = fmaf(corner_weight[c], element<scalar_t>(corner[c], k), value);
            }
            by_query[k] = fmaf(factor * own[k], value, by_query[k]);
          }
        }
      }
      if constexpr (kProducts) {
        [[maybe_unused]] float distance[kAxes + 1];
        if (p.source == Source::kAffine) {
          int rest = tap;
#pragma unroll
          for (int a = kAxes - 1; a >= 0; --a) {
            const int next = w.axis[kFirst + a].divide_by_kernel(rest);
            distance[a] = w.axis[kFirst + a].distance(rest - next * w.axis[kFirst + a].kernel);
            rest = next;
          }
        }
        distance[kAxes] = 1;
        float product[kCorners] = {};
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          const float mine = weight == nullptr ? query[k] : own[k] * query[k];
#pragma unroll
          for (int c = 0; c < kCorners; ++c) {
            product[c] = fmaf(mine, element<scalar_t>(corner[c], k), product[c]);
          }
        }
        for (int d = 0; d <= dots; ++d) {
          float value = 0;
#pragma unroll
          for (int c = 0; c < kCorners; ++c) {
            value = fmaf(corner_weight[d * kCorners + c], product[c], value);
          }
          if (d == 0) {
            part(t, packet, row) = value;
          } else if (of_taps) {
            part(d * shape.taps + t, packet, row) = factor * value;
          } else {
#pragma unroll
            for (int r = 0; r < kMaxAxes; ++r) {
#pragma unroll
              for (int e = 0; e <= kAxes; ++e) {
                if (is_wanted(e)) {
                  by_parameter[r][e] += r + 1 == d ? factor * value * distance[e] : 0.f;
                }
              }
            }
          }
        }
      }
    }
    if constexpr (kProducts) {
      __syncthreads();
      if (call.by_mask.data != nullptr) {
        const int heads = static_cast<int>(per_group / per_mask);
        const int each = packets / heads;
        for (int i = thread; i < count * heads * tile; i += threads) {
          const int r = i % tile;
          const int head = i / tile % heads;
          const int t = i / tile / heads;
          if (first_position + r < w.length) {
            float sum = 0;
            for (int k = 0; k < each; ++k) {
              sum += part(t, head * each + k, r);
            }
            auto* const target = static_cast<scalar_t*>(const_cast<void*>(call.by_mask.data));
            target
                [b * call.by_mask.batch +
                 (static_cast<int64_t>(g * heads + head) * taps + start + t) * call.by_mask.channel +
                 (first_position + r) * call.by_mask.position] = static_cast<scalar_t>(sum);
          }
        }
      }
    }
    const auto store = [&](int64_t entry, int number, int r, int t) {
      float sum = 0;
      for (int k = 0; k < packets; ++k) {
        sum += part(t, k, r);
      }
      const int64_t at =
          ((group * positions_per_group(p) + entry) * dots * call.multiples + number) * w.length + first_position + r;
      if (call.positions.is_float) {
        static_cast<float*>(call.by_positions)[at] = sum;
      } else {
        static_cast<scalar_t*>(call.by_positions)[at] = static_cast<scalar_t>(sum);
      }
    };
    if constexpr (kProducts) {
      if (of_taps) {
        for (int i = thread; i < count * dots * tile; i += threads) {
          const int r = i % tile;
          const int d = i / tile % dots;
          const int t = i / tile / dots;
          if (first_position + r < w.length) {
            store(start + t, d, r, (d + 1) * shape.taps + t);
          }
        }
      } else if (dots > 0 && start + count == taps) {
        int multiple = 0;
#pragma unroll
        for (int e = 0; e <= kAxes; ++e) {
          if (!is_wanted(e)) {
            continue;
          }
          __syncthreads();
#pragma unroll
          for (int d = 0; d < kMaxAxes; ++d) {
            if (d < dots) {
              part(d, packet, row) = by_parameter[d][e];
            }
          }
          __syncthreads();
          for (int i = thread; i < dots * tile; i += threads) {
            if (first_position + i % tile < w.length) {
              store(0, i / tile * call.multiples + multiple, i % tile, i / tile);
            }
          }
          ++multiple;
        }
      }
    }
  }
  if constexpr (kQuery) {
    if (here) {
      auto* const target = static_cast<scalar_t*>(call.by_query) +
          (static_cast<int64_t>(b) * w.length + position) * p.channels + channel;
      *reinterpret_cast<uint4*>(target) = to_packet<scalar_t>(by_query);
    }
  }
}

int64_t packet_of(c10::ScalarType type) { return 16 / static_cast<int64_t>(c10::elementSize(type)); }

}  // namespace

bool sums_possible(const UnfoldParams& p, c10::ScalarType type, int64_t mask_groups, bool by_mask) {
  if (type == c10::ScalarType::Double) {
    return false;
  }
  const int64_t packet = packet_of(type);
  const int64_t per_group = p.channels / p.groups;
  const int64_t per_mask = p.channels / mask_groups;
  constexpr int64_t kLimit = int64_t(1) << 30;
  const double image_packets = static_cast<double>(pixels_of(p)) * static_cast<double>(p.channels / packet);
  bool fits =
      image_packets < kLimit && positions_of(p) < int64_t(1) << kPositionBits && p.batch < kLimit && taps_of(p) < 4096;
  for (const auto& axis : p.axis) {  // 32 bits must hold a window's pixel, before the tap's displacement
    const int64_t reach = axis.dilation * (axis.kernel - 1);
    fits = fits && std::max({axis.size, axis.padding, reach, axis.out_size * axis.stride}) < kLimit / 4;
  }
  return fits && per_group % packet == 0 && per_mask % packet == 0 && per_group / packet <= kThreads &&
      (!by_mask || per_group % per_mask == 0);
}

void launch_sums(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream) {
  const bool query = call.by_query != nullptr;
  const bool products = call.by_mask.data != nullptr || call.by_positions != nullptr;
  if (call.by_input != nullptr) {
    launch_sums_input(p, type, call, stream);
  }
  if (!query && !products) {
    return;
  }
  Shape shape = {};
  shape.packets = static_cast<int>(p.channels / p.groups / packet_of(type));
  shape.positions = std::min(kMostPositions, kThreads / shape.packets);
  shape.position_blocks = ceil_div<int64_t>(positions_of(p), shape.positions);
  const int corners = p.axes == 3 ? 8 : 4;
  const int64_t parts = !products ? 0 : 1 + (per_tap(p.source) ? call.dots : 0);
  const int64_t per_tap_bytes = static_cast<int64_t>(shape.positions) *
          ((products ? 1 + call.dots : 1) * corners * 4 + static_cast<int64_t>(sizeof(Located))) +
      parts * shape.packets * (shape.positions + 1) * 4;
  // The sums for a window's parameters take the place of the parts of some taps.
  const int64_t least = products && !per_tap(p.source) ? std::max(call.dots, 1) : 1;
  shape.taps =
      static_cast<int>(std::min(std::max(kSharedBytes / per_tap_bytes, least), std::max<int64_t>(taps_of(p), least)));
  const int64_t bytes = shape.taps * per_tap_bytes;
  const auto grid = grid_of(p.batch * p.groups * shape.position_blocks);
  const dim3 block(static_cast<unsigned>(shape.packets), static_cast<unsigned>(shape.positions));
  const auto w = windows_of(p, call.positions);
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto launch = [&](auto axes) {
      constexpr int kAxes = decltype(axes)::value;
      const auto kernel = !products ? counted<sums_kernel<scalar_t, kAxes, true, false>>()
          : !query                  ? counted<sums_kernel<scalar_t, kAxes, false, true>>()
                                    : counted<sums_kernel<scalar_t, kAxes, true, true>>();
      kernel.launch()<<<grid, block, static_cast<size_t>(bytes), stream>>>(w, call, shape);
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
