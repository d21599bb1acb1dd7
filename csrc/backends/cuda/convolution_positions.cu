// SPDX-License-Identifier: MIT
// The convolution's gradients with respect to positions and mask, which move and scale the samples.

#include <algorithm>

#include "convolution_impl.h"

namespace ddu::cuda {

namespace {

constexpr int kTeam = 4;      // warps per block
constexpr int kResident = 2;  // blocks per multiprocessor

template <int kAxes>
constexpr int kTappedBytes = kRows * static_cast<int>(sizeof(Tapped<kAxes>));

// The size of a warp's sums for the entries of an affine map.
template <int kAxes>
constexpr int kMapBytes = kRows * kAxes * (kAxes + 1) * static_cast<int>(sizeof(float));

// The product of the fractions along the axes whose bits are set in `axes`.
template <int kAxes>
__device__ __forceinline__ float product_of(const float (&fraction)[kAxes], int axes) {
  float product = 1;
#pragma unroll
  for (int a = 0; a < kAxes; ++a) {
    product *= (axes & axis_bit(kMaxAxes - kAxes + a)) != 0 ? fraction[a] : 1.f;
  }
  return product;
}

// A block's warps process kTeam * 32 positions and a part of the taps: blockIdx.y.
template <class T, int kAxes, bool kExact>
__global__ void __launch_bounds__(kWarp* kTeam, kResident) convolution_positions_kernel(
    const __grid_constant__ Fused f,
    const __grid_constant__ WeightView weight,
    const T* grad_output,
    float* grad_positions,
    float* grad_mask,
    int position_tiles) {
  constexpr int kPacketChannels = 16 / static_cast<int>(sizeof(T));
  constexpr int kTiles = kExact ? 4 : 8;
  constexpr int kChannels = 8 * kTiles;
  constexpr int kStageBytes = kChannels * kStepBytes;
  constexpr int kThreads = kTeam * kWarp;
  constexpr int kCorners = 1 << kAxes;
  constexpr int kFirst = kMaxAxes - kAxes;
  constexpr int kTilesOfPacket = kPacketChannels / 2;
  extern __shared__ uint4 shared[];
  auto* const memory = reinterpret_cast<char*>(shared);

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / kLanes;
  const int q = lane % kLanes;
  const int thread = static_cast<int>(threadIdx.x);
  const int first = (static_cast<int>(blockIdx.x) % position_tiles * kTeam + warp) * kRows;
  const int b = static_cast<int>(blockIdx.x) / position_tiles;
  auto* const tapped = reinterpret_cast<Tapped<kAxes>*>(memory + kStages * kStageBytes + warp * kTappedBytes<kAxes>);
  // Each lane adds to its own sums: of_map[r * kRows] for entry r.
  auto* const of_map =
      reinterpret_cast<float*>(memory + kStages * kStageBytes + kTeam * kTappedBytes<kAxes> + warp * kMapBytes<kAxes>) +
      lane;
  const CornerPackets<kAxes> image(f, b);
  const T* const matrix = static_cast<const T*>(weight.data) + b * weight.batch;
  const int splits = static_cast<int>(gridDim.y);
  const int split = static_cast<int>(blockIdx.y);
  const int first_tap = f.taps * split / splits;
  const int taps = f.taps * (split + 1) / splits - first_tap;
  const int chunks = (f.run + kChannels - 1) / kChannels;
  const int depths = (f.group_outputs + kDepth<T> - 1) / kDepth<T>;
  const int runs = f.channels / f.run;
  const int steps = runs * taps * chunks * depths;

  Step ahead(0, taps, chunks);
  int ahead_depth = 0;
  const auto fill = [&](int slot) {
    const int channel = ahead.chunk * kChannels;
    const int depth = ahead_depth * kDepth<T>;
    const T* const from =
        matrix + (first_tap + ahead.tap) * weight.tap + (ahead.run * f.run + channel) * weight.row + depth;
    const auto valid = [&](int row, int element) { return channel + row < f.run && depth + element < f.group_outputs; };
    fill_stage<kChannels, kThreads>(memory + slot * kStageBytes, from, weight.row, valid, matrix, thread);
    if (++ahead_depth == depths) {
      ahead_depth = 0;
      ahead.next(taps, chunks);
    }
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) {
      fill(s);
    }
    commit_copies();
  }

  auto locator = locator_at<T, kAxes>(f, b, first + lane);
  // After the sums over the taps, lane 4 g + q handles position 8 q + g.
  const int spoken = q * 8 + g;
  float of_window[kAxes] = {};
  int step_number = 0;
  int slot = 0;
  for (int run = 0; run < runs; ++run) {
    const int run_channel = run * f.run;
    const int group = run_channel / f.group_channels;
    const bool first_of_positions = run_channel % f.position_run == 0;
    const bool last_of_positions = (run_channel + f.run) % f.position_run == 0;
    const bool first_of_mask = run_channel % f.mask_run == 0;
    const int position_group = run_channel / f.position_run;
    if (first_of_positions) {
#pragma unroll
      for (int a = 0; a < kAxes; ++a) {
        of_window[a] = 0;
      }
      for (int r = 0; r < kAxes * (kAxes + 1) && f.p.source == Source::kAffine; ++r) {
        of_map[r * kRows] = 0;
      }
    }
    for (int t = first_tap; t < first_tap + taps; ++t) {
      locator.begin(t);
      if (!by_axis(f.p.source) || t == first_tap) {
        locator.load_parameters(run_channel, t);
      }
      __syncwarp();
      tapped[lane].set(locator, run_channel, t);
      __syncwarp();
      // The samples' differences along the axes whose bits are set in c, times the gradient of their columns.
      float dot[kBlocks][kCorners] = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        float sum[2][kTiles][4] = {};
        for (int depth = 0; depth < depths; ++depth, ++step_number) {
          wait_for_copies<kStages - 2>();
          __syncthreads();
          if (step_number + kStages - 1 < steps) {
            fill(slot == 0 ? kStages - 1 : slot - 1);
          }
          commit_copies();
          const char* const stage = memory + slot * kStageBytes;
          slot = slot == kStages - 1 ? 0 : slot + 1;
          add_step<kExact>(sum, [&](auto& part) {
#pragma unroll
            for (int segment = 0; segment < kSegments; ++segment) {
              const int o = depth * kDepth<T> + (segment * kLanes + q) * kPacketChannels;
              if (depth * kDepth<T> + segment * kLanes * kPacketChannels >= f.group_outputs) {
                break;
              }
              Operand<T, kExact> left[kBlocks];
#pragma unroll
              for (int block8 = 0; block8 < kBlocks; ++block8) {
                const int position = first + block8 * 8 + g;
                uint4 packet = make_uint4(0, 0, 0, 0);
                if (position < f.length && o < f.group_outputs) {
                  packet = __ldg(
                      reinterpret_cast<const uint4*>(
                          grad_output + (static_cast<int64_t>(b) * f.length + position) * f.outputs +
                          group * f.group_outputs + o));
                }
                left[block8] = Operand<T, kExact>(packet_of(packet));
              }
              multiply_segment<kPacketChannels>(part, left, stage, segment, g, q);
            }
          });
        }

        // sum is the columns' gradient, for rows 8 * block8 + g. Of every kLanes * kPacketChannels channels, lane q has
        // packet q.
#pragma unroll
        for (int block8 = 0; block8 < kBlocks; ++block8) {
          const auto tap = tapped[block8 * 8 + g];
#pragma unroll
          for (int packet = 0; packet < kTiles / kTilesOfPacket; ++packet) {
            const int channel = chunk * kChannels + (packet * kLanes + q) * kPacketChannels;
            if (channel >= f.run) {
              continue;
            }
            const auto grad = [&](int k) {
              return sum[block8 / 2][packet * kTilesOfPacket + k / 2][block8 % 2 * 2 + k % 2];
            };
            uint4 corner[kCorners];
            image.gather(tap.offset + (run_channel + channel) / kPacketChannels, tap.inside, corner);
#pragma unroll
            for (int k = 0; k < kPacketChannels; ++k) {
              float difference[kCorners];
#pragma unroll
              for (int c = 0; c < kCorners; ++c) {
                difference[c] = element<T>(corner[c], k);
              }
#pragma unroll
              for (int a = 0; a < kAxes; ++a) {
#pragma unroll
                for (int c = 0; c < kCorners; ++c) {
                  if ((c & axis_bit(kFirst + a)) != 0) {
                    difference[c] -= difference[c & ~axis_bit(kFirst + a)];
                  }
                }
              }
#pragma unroll
              for (int c = 0; c < kCorners; ++c) {
                dot[block8][c] = fmaf(grad(k), difference[c], dot[block8][c]);
              }
            }
          }
        }
      }

      float mine[kCorners];
#pragma unroll
      for (int c = 0; c < kCorners; ++c) {
#pragma unroll
        for (int block8 = 0; block8 < kBlocks; ++block8) {
          float x = dot[block8][c];
          x += __shfl_xor_sync(~0u, x, 1);
          x += __shfl_xor_sync(~0u, x, 2);
          mine[c] = block8 == q ? x : (block8 == 0 ? 0.f : mine[c]);
        }
      }
      const auto tap = tapped[spoken];
      const int position = first + spoken;
      const bool valid = position < f.length;
      const float poison = tap.finite() ? 0.f : std::numeric_limits<float>::quiet_NaN();
      if (grad_mask != nullptr && valid) {
        float value = poison;
#pragma unroll
        for (int c = 0; c < kCorners; ++c) {
          value = fmaf(mine[c], product_of<kAxes>(tap.fraction, c), value);
        }
        const int64_t channel = static_cast<int64_t>(run_channel / f.mask_run) * f.taps + t;
        float* const to =
            grad_mask + (b * (static_cast<int64_t>(f.channels / f.mask_run) * f.taps) + channel) * f.length + position;
        *to = first_of_mask ? value : *to + value;
      }
      if (grad_positions != nullptr) {
#pragma unroll
        for (int a = 0; a < kAxes; ++a) {
          float value = poison;
#pragma unroll
          for (int c = 0; c < kCorners; ++c) {
            if ((c & axis_bit(kFirst + a)) != 0) {
              value = fmaf(mine[c], product_of<kAxes>(tap.fraction, c & ~axis_bit(kFirst + a)), value);
            }
          }
          value *= tap.mask * tap.direction[a];
          if (by_axis(f.p.source)) {
            of_window[a] = fmaf(value, locator.slope(a), of_window[a]);
          } else if (!per_tap(f.p.source)) {
            float distance[kAxes];
            locator.distances(distance);
#pragma unroll
            for (int e = 0; e <= kAxes; ++e) {
              of_map[(a * (kAxes + 1) + e) * kRows] += e < kAxes ? value * distance[e] : value;
            }
          } else if (valid && kFirst + a >= f.p.first_axis()) {
            const int64_t channel = parameter_channel(f.p, position_group, t, kFirst + a);
            const int64_t channels = f.p.groups * positions_per_group(f.p) * f.p.parameters;
            float* const to = grad_positions + (b * channels + channel) * f.length + position;
            *to = first_of_positions ? value : *to + value;
          }
        }
      }
    }
    if (grad_positions != nullptr && !per_tap(f.p.source) && last_of_positions && first + spoken < f.length) {
      const int64_t channels = f.p.groups * f.p.parameters;
      float* const to = grad_positions +
          ((split * f.p.batch + b) * channels + position_group * f.p.parameters) * f.length + first + spoken;
      if (f.p.source == Source::kAffine) {
        int r = 0;
#pragma unroll
        for (int a = 0; a < kAxes; ++a) {
#pragma unroll
          for (int e = 0; e <= kAxes; ++e) {
            if (kFirst + min(a, e) >= f.p.first_axis()) {
              to[r++ * f.length] = of_map[(a * (kAxes + 1) + e) * kRows];
            }
          }
        }
      } else if (f.p.parameters == 1) {
        float all = 0;
#pragma unroll
        for (int a = 0; a < kAxes; ++a) {
          all += of_window[a];
        }
        *to = all;
      } else {
#pragma unroll
        for (int a = 0; a < kAxes; ++a) {
          if (kFirst + a >= f.p.first_axis()) {
            to[(kFirst + a - f.p.first_axis()) * f.length] = of_window[a];
          }
        }
      }
    }
  }
  wait_for_copies<0>();
}

}  // namespace

int64_t tap_splits(const FusedProblem& problem) {
  return splits_of(
      problem.p.batch * ceil_div<int64_t>(positions_of(problem.p), kTeam * kRows), taps_of(problem.p), kResident);
}

void launch_convolution_positions(
    const FusedProblem& problem,
    c10::ScalarType type,
    const WeightView& weight,
    const void* grad_output,
    float* grad_positions,
    float* grad_mask,
    cudaStream_t stream) {
  const auto f = fused(problem, type);
  dispatch_axes(problem.p, [&](auto axes) {
    dispatch_product(type, problem.exact, [&](auto zero, auto exact) {
      using T = decltype(zero);
      constexpr int kAxes = decltype(axes)::value;
      constexpr bool kExact = decltype(exact)::value;
      const int position_tiles = ceil_div(f.length, kTeam * kRows);
      const dim3 grid(grid_of(problem.p.batch * position_tiles), static_cast<unsigned>(tap_splits(problem)));
      constexpr int kBytes = kStages * (kExact ? 32 : 64) * kStepBytes + kTeam * kTappedBytes<kAxes>;
      constexpr int kOfMaps = kTeam * kMapBytes<kAxes>;
      static_assert(kBytes + kOfMaps <= kSharedBytes);
      const int bytes = problem.p.source == Source::kAffine ? kBytes + kOfMaps : kBytes;
      const auto kernel = counted<convolution_positions_kernel<T, kAxes, kExact>>();
      kernel.launch()<<<grid, kWarp * kTeam, bytes, stream>>>(
          f, weight, static_cast<const T*>(grad_output), grad_positions, grad_mask, position_tiles);
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
