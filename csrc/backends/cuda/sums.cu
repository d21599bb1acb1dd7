// SPDX-License-Identifier: MIT
// The sums of windows, without columns.

// NOTE [ Sums kernel ]
// A block owns some output positions of a group and all its channels, a packet of 16 bytes of them to a thread:
// neighbouring threads read neighbouring packets of a pixel, as many as a tap has corners. Where a tap lies, and its
// weights, does not depend on the channel. So the block works that out first, for some taps of all its positions, a
// thread for each, and leaves it in shared memory; then every thread goes through the taps.
//
// - by query: a thread adds up what it has read, in registers.
// - by mask and by positions: a thread multiplies what it has read by the query, separately for the corners, which
// turns
//   the value and every derivative into one product per corner and not per channel. What the threads of a position have
//   is added in the order of the channels, so the result is the same in every run.
// - by input: each corner's share of the query is added to float32 sums, 16 bytes at a time from compute capability 9.0
//   on. The order of the additions is not fixed.

#include <algorithm>

#include "packets.h"
#include "sums.h"

namespace ddu::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kMostPositions = 64;       // of a block
constexpr int64_t kSharedBytes = 40960;  // of a block, so that five of them fit on a multiprocessor

struct Shape {
  int packets;    // of a group
  int positions;  // of a block
  int taps;       // that are worked out together
  int64_t position_blocks;
};

// What is known of a tap before its channels.
template <int kAxes>
struct Located {
  int first;        // the pixel of its first corner
  unsigned inside;  // bit c: whether corner c lies in the image
};

__device__ __forceinline__ void add4(float* sum, const float (&value)[4]) {
#if __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(sum), make_float4(value[0], value[1], value[2], value[3]));
#else
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    atomicAdd(sum + k, value[k]);
  }
#endif
}

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

// Works out one tap of one position: to `located` and `weights`, those of the value and then of every term.
template <class scalar_t, int kAxes>
__device__ __forceinline__ void locate(
    const UnfoldParams& p,
    const SumsCall& call,
    int64_t b,
    int64_t g,
    int position,
    int tap,
    int dots,
    Located<kAxes>& located,
    float* weights) {
  constexpr int kFirst = kMaxAxes - kAxes;
  constexpr int kCorners = 1 << kAxes;
  int64_t at = b * call.positions.batch;
  int index[kAxes];
  int taps[kAxes];
  int rest_position = position;
  int rest_tap = tap;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const auto& axis = p.axis[kFirst + a];
    index[a] = rest_position % static_cast<int>(axis.out_size);
    rest_position /= static_cast<int>(axis.out_size);
    taps[a] = rest_tap % static_cast<int>(axis.kernel);
    rest_tap /= static_cast<int>(axis.kernel);
    at += index[a] * call.positions.axis[kFirst + a];
  }
  AxisWeights<float> along[kAxes];
  float distance[kAxes];
  float parameter[kAxes];
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    distance[a] = tap_distance<float>(p.axis[kFirst + a], taps[a]);
  }
  const bool finite = load_parameters<scalar_t>(p, call.positions, p.source, at, g, tap, distance, parameter);
  int pixel = 0;
  int pitch = 1;
  unsigned inside = (1u << kCorners) - 1;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    const auto& axis = p.axis[kFirst + a];
    const auto place = tap_place<float>(axis, p.source, p.aligned, taps[a]);
    const int base = static_cast<int>(index[a] * axis.stride + first_pixel(axis, p.source, p.aligned) + place.pixels);
    const auto found = neighbours<float, int>(
        static_cast<int>(axis.size), base, place.fraction, place.slope, parameter[a], p.padding_mode);
    along[a] = axis_weights(found.fraction, found.direction);
    const bool low = found.pixel >= 0;
    const bool high = found.pixel >= -1 && found.pixel + 1 < static_cast<int>(axis.size);
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      const bool here = (c & axis_bit(kFirst + a)) != 0 ? high : low;
      inside = here ? inside : inside & ~(1u << c);
    }
    pixel += found.pixel * pitch;
    pitch *= static_cast<int>(axis.size);
  }
  located = {pixel, finite ? inside : 0u};
  for (int d = 0; d <= dots; ++d) {
    const auto w = corner_weights(along, distance, d == 0 ? p.term : call.terms[d - 1]);
#pragma unroll
    for (int c = 0; c < kCorners; ++c) {
      weights[d * kCorners + c] = finite ? w.corner[c] : std::numeric_limits<float>::quiet_NaN();
    }
  }
}

template <class scalar_t, int kAxes, bool kQuery, bool kProducts, bool kInput>
__global__ void __launch_bounds__(kThreads) sums_kernel(const UnfoldParams p, const SumsCall call, const Shape shape) {
  constexpr int kCorners = 1 << kAxes;
  constexpr int kFirst = kMaxAxes - kAxes;
  constexpr int kElements = kPacket<scalar_t>;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  const int dots = kProducts ? call.dots : 0;
  const int numbers = (1 + dots) * kCorners;
  const bool of_taps = kProducts && dots > 0 && per_tap(p.source);
  const int tile = shape.positions;
  const int packets = shape.packets;

  extern __shared__ float4 shared[];
  auto* const weights = reinterpret_cast<float*>(shared);
  auto* const located = reinterpret_cast<Located<kAxes>*>(weights + shape.taps * tile * numbers);
  [[maybe_unused]] auto* const parts = reinterpret_cast<float*>(located + shape.taps * tile);
  [[maybe_unused]] const int part_size = shape.taps * tile * packets;

  const int64_t length = positions_of(p);
  const int taps = static_cast<int>(taps_of(p));
  const int64_t group = blockIdx.x / shape.position_blocks;  // of the batch's B * G
  const int64_t first_position = blockIdx.x % shape.position_blocks * tile;
  const int64_t b = group / p.groups;
  const int64_t g = group % p.groups;
  const int packet = static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(threadIdx.y);
  const int thread = row * packets + packet;
  const int threads = tile * packets;
  const int64_t position = first_position + row;
  const bool here = position < length;
  const int64_t per_group = p.channels / p.groups;
  const int64_t per_mask = p.channels / call.mask_groups;
  const int64_t channel = g * per_group + packet * kElements;
  const int64_t pixels = pixels_of(p);

  const auto* const image = static_cast<const scalar_t*>(call.input) + b * pixels * p.channels + channel;
  [[maybe_unused]] float* const sums = call.by_input + b * pixels * p.channels + channel;
  const scalar_t* mask = nullptr;
  if (call.mask.data != nullptr && here) {
    mask = static_cast<const scalar_t*>(call.mask.data) + b * call.mask.batch +
        channel / per_mask * taps * call.mask.channel + position * call.mask.position;
  }
  const auto* const weight =
      call.weight == nullptr ? nullptr : static_cast<const scalar_t*>(call.weight) + b * call.weight_batch + channel;
  int offset[kCorners];  // of a corner from the first, in pixels
#pragma unroll
  for (int c = 0; c < kCorners; ++c) {
    offset[c] = 0;
    int pitch = 1;
#pragma unroll
    for (int a = kAxes - 1; a >= 0; --a) {
      offset[c] += (c & axis_bit(kFirst + a)) != 0 ? pitch : 0;
      pitch *= static_cast<int>(p.axis[kFirst + a].size);
    }
  }
  const int channels = static_cast<int>(p.channels);

  [[maybe_unused]] float query[kElements];
  if constexpr (kProducts || kInput) {
    uint4 loaded = make_uint4(0, 0, 0, 0);
    if (here) {
      loaded = __ldg(
          reinterpret_cast<const uint4*>(
              static_cast<const scalar_t*>(call.query) + (b * length + position) * p.channels + channel));
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      query[k] = element<scalar_t>(loaded, k);
    }
  }
  [[maybe_unused]] float by_query[kElements] = {};
  // Of each dot its multiples by the distance along every axis, and last itself.
  [[maybe_unused]] float by_parameter[kMaxAxes][kAxes + 1] = {};
  const auto is_wanted = [&](int e) { return e == kAxes || (call.multiples > 1 && kFirst + e >= p.first_axis()); };

  for (int start = 0; start < taps; start += shape.taps) {
    const int count = min(shape.taps, taps - start);
    __syncthreads();
    for (int e = thread; e < count * tile; e += threads) {
      const int at = static_cast<int>(min(first_position + e % tile, length - 1));
      locate<scalar_t, kAxes>(p, call, b, g, at, start + e / tile, dots, located[e], weights + e * numbers);
    }
    __syncthreads();
    for (int t = 0; t < count && here; ++t) {
      const int e = t * tile + row;
      const int tap = start + t;
      const auto [first, inside] = located[e];
      const float* const w = weights + e * numbers;
      const float factor = mask == nullptr ? 1.f : load(mask + tap * call.mask.channel);
      [[maybe_unused]] float own[kElements];  // the weight of each channel, times the query where that counts
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        own[k] = 1.f;
      }
      if (weight != nullptr) {
        const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(weight + static_cast<int64_t>(tap) * p.channels));
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          own[k] = element<scalar_t>(loaded, k);
        }
      }
      [[maybe_unused]] uint4 corner[kCorners];
      if constexpr (kQuery || kProducts) {
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
          corner[c] = make_uint4(0, 0, 0, 0);
          if ((inside & 1u << c) != 0) {
            corner[c] =
                __ldg(reinterpret_cast<const uint4*>(image + static_cast<int64_t>(first + offset[c]) * channels));
          }
        }
      }
      if constexpr (kQuery) {
        if (weight == nullptr) {
#pragma unroll
          for (int c = 0; c < kCorners; ++c) {
            const float share = factor * w[c];
#pragma unroll
            for (int k = 0; k < kElements; ++k) {
              by_query[k] += share * element<scalar_t>(corner[c], k);
            }
          }
        } else {
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            float value = 0;
#pragma unroll
            for (int c = 0; c < kCorners; ++c) {
              value += w[c] * element<scalar_t>(corner[c], k);
            }
            by_query[k] += factor * own[k] * value;
          }
        }
      }
      if constexpr (kProducts || kInput) {
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          own[k] *= query[k];
        }
      }
      if constexpr (kProducts) {
        [[maybe_unused]] float distance[kAxes + 1];
        if (p.source == Source::kAffine) {
          int rest = tap;
#pragma unroll
          for (int a = kAxes - 1; a >= 0; --a) {
            const auto& axis = p.axis[kFirst + a];
            distance[a] = tap_distance<float>(axis, rest % static_cast<int>(axis.kernel));
            rest /= static_cast<int>(axis.kernel);
          }
        }
        distance[kAxes] = 1;
        float product[kCorners];
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
          product[c] = 0;
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            product[c] += own[k] * element<scalar_t>(corner[c], k);
          }
        }
        for (int d = 0; d <= dots; ++d) {
          float value = 0;
#pragma unroll
          for (int c = 0; c < kCorners; ++c) {
            value += w[d * kCorners + c] * product[c];
          }
          if (d == 0) {
            parts[e * packets + packet] = value;
          } else if (of_taps) {
            parts[d * part_size + e * packets + packet] = factor * value;
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
      if constexpr (kInput) {
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
          if ((inside & 1u << c) != 0 && call.by_input != nullptr) {
            const float share = factor * w[c];
            float* const sum = sums + static_cast<int64_t>(first + offset[c]) * channels;
#pragma unroll
            for (int k = 0; k < kElements; k += 4) {
              const float value[4] = {share * own[k], share * own[k + 1], share * own[k + 2], share * own[k + 3]};
              add4(sum + k, value);
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
          if (first_position + r < length) {
            float sum = 0;
            for (int k = 0; k < each; ++k) {
              sum += parts[(t * tile + r) * packets + head * each + k];
            }
            auto* const target = static_cast<scalar_t*>(const_cast<void*>(call.by_mask.data));
            target
                [b * call.by_mask.batch + ((g * heads + head) * taps + start + t) * call.by_mask.channel +
                 (first_position + r) * call.by_mask.position] = static_cast<scalar_t>(sum);
          }
        }
      }
    }
    const auto store = [&](int64_t entry, int number, int r, const float* values) {
      float sum = 0;
      for (int k = 0; k < packets; ++k) {
        sum += values[k];
      }
      const int64_t at =
          ((group * positions_per_group(p) + entry) * dots * call.multiples + number) * length + first_position + r;
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
          if (first_position + r < length) {
            store(start + t, d, r, parts + (d + 1) * part_size + (t * tile + r) * packets);
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
              parts[(d * tile + row) * packets + packet] = by_parameter[d][e];
            }
          }
          __syncthreads();
          for (int i = thread; i < dots * tile; i += threads) {
            if (first_position + i % tile < length) {
              store(0, i / tile * call.multiples + multiple, i % tile, parts + i * packets);
            }
          }
          ++multiple;
        }
      }
    }
  }
  if constexpr (kQuery) {
    if (here) {
      auto* const target = static_cast<scalar_t*>(call.by_query) + (b * length + position) * p.channels + channel;
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
  bool fits = pixels_of(p) < kLimit && positions_of(p) < kLimit && taps_of(p) < 4096;
  for (const auto& axis : p.axis) {  // a pixel of a window, before its own displacement, in 32 bits
    const int64_t reach = axis.dilation * (axis.kernel - 1);
    fits = fits && std::max({axis.size, axis.padding, reach, axis.out_size * axis.stride}) < kLimit / 4;
  }
  return fits && per_group % packet == 0 && per_mask % packet == 0 && per_group / packet <= kThreads &&
      (!by_mask || per_group % per_mask == 0);
}

void launch_sums(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream) {
  Shape shape = {};
  shape.packets = static_cast<int>(p.channels / p.groups / packet_of(type));
  shape.positions = std::min(kMostPositions, kThreads / shape.packets);
  shape.position_blocks = ceil_div<int64_t>(positions_of(p), shape.positions);
  const bool query = call.by_query != nullptr;
  const bool input = call.by_input != nullptr;
  const bool products = call.by_mask.data != nullptr || call.by_positions != nullptr || (query && input);
  const int corners = p.axes == 3 ? 8 : 4;
  const int64_t parts = !products ? 0 : 1 + (per_tap(p.source) ? call.dots : 0);
  const int64_t per_tap_bytes = static_cast<int64_t>(shape.positions) *
      ((products ? 1 + call.dots : 1) * corners * 4 + static_cast<int64_t>(sizeof(Located<2>)) +
       parts * shape.packets * 4);
  // The sums by the parameters of a window take the place of the parts of some taps.
  const int64_t least = products && !per_tap(p.source) ? std::max(call.dots, 1) : 1;
  shape.taps =
      static_cast<int>(std::min(std::max(kSharedBytes / per_tap_bytes, least), std::max<int64_t>(taps_of(p), least)));
  const int64_t bytes = shape.taps * per_tap_bytes;
  const auto grid = grid_of(p.batch * p.groups * shape.position_blocks);
  const dim3 block(static_cast<unsigned>(shape.packets), static_cast<unsigned>(shape.positions));
  dispatch_half_or_float(type, [&](auto zero) {
    using scalar_t = decltype(zero);
    const auto launch = [&](auto axes) {
      constexpr int kAxes = decltype(axes)::value;
      const auto kernel = query && !products && !input ? counted<sums_kernel<scalar_t, kAxes, true, false, false>>()
          : !query && !products                        ? counted<sums_kernel<scalar_t, kAxes, false, false, true>>()
          : !query && !input                           ? counted<sums_kernel<scalar_t, kAxes, false, true, false>>()
          : !query                                     ? counted<sums_kernel<scalar_t, kAxes, false, true, true>>()
                                                       : counted<sums_kernel<scalar_t, kAxes, true, true, true>>();
      kernel.launch()<<<grid, block, static_cast<size_t>(bytes), stream>>>(p, call, shape);
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
