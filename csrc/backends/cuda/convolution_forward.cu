// SPDX-License-Identifier: MIT
// The convolution: NOTE [ Fused convolution ].

#include <algorithm>

#include "convolution_impl.h"

namespace ddu::cuda {

namespace {

template <class T>
__device__ __forceinline__ void store_vector(T* to, const float (&value)[16 / sizeof(T)]) {
  uint4 packet;
  auto* const words = reinterpret_cast<T*>(&packet);
#pragma unroll
  for (int i = 0; i < 16 / static_cast<int>(sizeof(T)); ++i) {
    words[i] = static_cast<T>(value[i]);
  }
  *reinterpret_cast<uint4*>(to) = packet;
}

template <class T, int kAxes>
constexpr int kSampledBytes = kRows * static_cast<int>(sizeof(Sampled<T, kAxes>));

template <class T, int kAxes, int kTiles, int kTeam, int kTeams>
constexpr int kForwardBytes = std::max(
    kTeams * (kStages * 8 * kTiles * kStepBytes + kTeam * kSampledBytes<T, kAxes>),
    (kTeams - 1) * kTeam * 2 * kTiles * 4 * kWarp * static_cast<int>(sizeof(float)));  // the teams' sums

// kTeam warps share the right operand, 8 * kTiles outputs; kTeams teams share the steps.
template <class T, int kAxes, int kTiles, int kTeam, int kTeams, bool kExact>
__global__ void __launch_bounds__(kWarp * kTeam * kTeams, kTeams == 1 ? 2 : 1) convolution_kernel(
    const __grid_constant__ Fused f,
    const __grid_constant__ WeightView weight,
    const T* bias,
    int64_t bias_batch,
    T* output,
    bool channels_last,
    int position_tiles,
    int output_tiles) {
  constexpr int kOutputs = 8 * kTiles;
  constexpr int kStageBytes = kOutputs * kStepBytes;
  constexpr int kThreads = kTeam * kWarp;
  constexpr int kPacketChannels = 16 / static_cast<int>(sizeof(T));
  extern __shared__ uint4 shared[];
  auto* const memory = reinterpret_cast<char*>(shared);

  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / kLanes;
  const int q = lane % kLanes;
  const int team = warp / kTeam;
  const int in_team = warp % kTeam;
  const int thread = in_team * kWarp + lane;

  int block = static_cast<int>(blockIdx.x);
  const int tile = block % output_tiles;
  block /= output_tiles;
  const int first = (block % position_tiles * kTeam + in_team) * kRows;
  const int b = block / position_tiles;
  const int tiles_of_group = output_tiles / static_cast<int>(f.channels / f.group_channels);
  const int group = tile / tiles_of_group;
  const int first_output = tile % tiles_of_group * kOutputs;

  char* const ring = memory + team * kStages * kStageBytes;
  auto* const sampled =
      reinterpret_cast<Sampled<T, kAxes>*>(memory + kTeams * kStages * kStageBytes + warp * kSampledBytes<T, kAxes>);
  const CornerPackets<kAxes> image(f, b);
  const T* const matrix = static_cast<const T*>(weight.data) + b * weight.batch +
      (static_cast<int64_t>(group) * f.group_outputs + first_output) * weight.row;

  const int chunks = (f.run + kDepth<T> - 1) / kDepth<T>;
  const int steps = f.runs * f.taps * chunks;
  const int begin = steps * team / kTeams;
  const int end = steps * (team + 1) / kTeams;

  Step ahead(begin, f.taps, chunks);
  const auto fill = [&](int slot) {
    const int channel = ahead.chunk * kDepth<T>;
    const T* const from = matrix + ahead.tap * weight.tap + ahead.run * f.run + channel;
    const auto valid = [&](int row, int element) {
      return first_output + row < f.group_outputs && channel + element < f.run;
    };
    fill_stage<kOutputs, kThreads>(ring + slot * kStageBytes, from, weight.row, valid, matrix, thread);
    ahead.next(f.taps, chunks);
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s < end) {
      fill(s);
    }
    commit_copies();
  }

  auto locator = locator_at<T, kAxes>(f, b, first + lane);
  float sum[2][kTiles][4] = {};
  Step step(begin, f.taps, chunks);
  int slot = 0;
  for (int s = begin; s < end; ++s, step.next(f.taps, chunks)) {
    if (s == begin || step.chunk == 0) {
      const int channel = group * f.group_channels + step.run * f.run;
      locator.begin(step.tap);
      if (!by_axis(f.p.source) || s == begin || step.tap == 0) {
        locator.load_parameters(channel, step.tap);
      }
      __syncwarp();
      sampled[lane].set(locator, channel, step.tap);
      __syncwarp();
    }
    wait_for_copies<kStages - 2>();
    team_barrier<kTeams>(team, kThreads);
    if (s + kStages - 1 < end) {
      fill(slot == 0 ? kStages - 1 : slot - 1);
    }
    commit_copies();

    const char* const stage = ring + slot * kStageBytes;
    slot = slot == kStages - 1 ? 0 : slot + 1;
    add_step<kExact>(sum, [&](auto& part) {
#pragma unroll
      for (int segment = 0; segment < kSegments; ++segment) {
        const int channel = step.chunk * kDepth<T> + (segment * kLanes + q) * kPacketChannels;
        if (step.chunk * kDepth<T> + segment * kLanes * kPacketChannels >= f.run) {
          break;
        }
        const bool present = channel < f.run;
        const int here = (group * f.group_channels + step.run * f.run + channel) / kPacketChannels;
        Operand<T, kExact> left[kBlocks];
#pragma unroll
        for (int block8 = 0; block8 < kBlocks; ++block8) {
          const auto tap = sampled[block8 * 8 + g];
          uint4 corner[1 << kAxes];
          image.gather(tap.offset + here, present ? tap.inside : 0u, corner);
          Packet samples = interpolate<T, kAxes>(corner, tap.factor);
          if (!present) {
            samples = {};
          }
          left[block8] = Operand<T, kExact>(samples);
        }
        multiply_segment<2 * kTiles>(part, left, stage, segment, g, q);
      }
    });
  }
  wait_for_copies<0>();

  if constexpr (kTeams > 1) {  // add the teams' sums, in order
    __syncthreads();
    auto* const parts = reinterpret_cast<float*>(memory);
    constexpr int kOfWarp = 2 * kTiles * 4 * kWarp;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = ((m * kTiles + n) * 4 + i) * kWarp + lane;
          if (team > 0) {
            parts[((team - 1) * kTeam + in_team) * kOfWarp + at] = sum[m][n][i];
          }
        }
      }
    }
    __syncthreads();
    if (team > 0) {
      return;
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = ((m * kTiles + n) * 4 + i) * kWarp + lane;
#pragma unroll
          for (int other = 1; other < kTeams; ++other) {
            sum[m][n][i] += parts[((other - 1) * kTeam + in_team) * kOfWarp + at];
          }
        }
      }
    }
  }

  // Lane q owns the outputs from 2 * kTiles * q on.
  const int mine = first_output + 2 * kTiles * q;
  const int output_channel = group * f.group_outputs + mine;
  const bool vectors = channels_last && f.outputs % kPacketChannels == 0 && f.group_outputs % kPacketChannels == 0;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (bias != nullptr && mine + 2 * n + i < f.group_outputs) {
        const float shift = load(bias + b * bias_batch + output_channel + 2 * n + i);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          sum[m][n][i] += shift;
          sum[m][n][2 + i] += shift;
        }
      }
    }
  }
#pragma unroll
  for (int block8 = 0; block8 < kBlocks; ++block8) {
    const int position = first + block8 * 8 + g;
    if (position >= f.length) {
      continue;
    }
    const auto value = [&](int k) { return sum[block8 / 2][k / 2][block8 % 2 * 2 + k % 2]; };
    if (vectors) {
      T* const to = output + (static_cast<int64_t>(b) * f.length + position) * f.outputs + output_channel;
#pragma unroll
      for (int k = 0; k < 2 * kTiles; k += kPacketChannels) {
        if (mine + k < f.group_outputs) {
          float packet[kPacketChannels];
#pragma unroll
          for (int i = 0; i < kPacketChannels; ++i) {
            packet[i] = value(k + i);
          }
          store_vector<T>(to + k, packet);
        }
      }
    } else {
#pragma unroll
      for (int k = 0; k < 2 * kTiles; ++k) {
        if (mine + k < f.group_outputs) {
          const int64_t o = output_channel + k;
          const int64_t at = channels_last ? (static_cast<int64_t>(b) * f.length + position) * f.outputs + o
                                           : (static_cast<int64_t>(b) * f.outputs + o) * f.length + position;
          output[at] = static_cast<T>(value(k));
        }
      }
    }
  }
}

}  // namespace

void launch_convolution(
    const FusedProblem& problem,
    c10::ScalarType type,
    const WeightView& weight,
    const void* bias,
    int64_t bias_batch,
    void* output,
    bool channels_last,
    cudaStream_t stream) {
  const auto f = fused(problem, type);
  const int64_t batch = problem.p.batch;
  dispatch_axes(problem.p, [&](auto axes) {
    dispatch_product(type, problem.exact, [&](auto zero, auto exact) {
      using T = decltype(zero);
      constexpr int kAxes = decltype(axes)::value;
      constexpr bool kExact = decltype(exact)::value;
      const auto launch = [&](auto tiles, auto team, auto teams) {
        constexpr int kTiles = decltype(tiles)::value;
        constexpr int kTeam = decltype(team)::value;
        constexpr int kTeams = decltype(teams)::value;
        constexpr int kBytes = kForwardBytes<T, kAxes, kTiles, kTeam, kTeams>;
        const int position_tiles = ceil_div(f.length, kTeam * kRows);
        const int output_tiles = static_cast<int>(problem.groups) * ceil_div(f.group_outputs, 8 * kTiles);
        const auto kernel = counted<convolution_kernel<T, kAxes, kTiles, kTeam, kTeams, kExact>>();
        if (kBytes > kSharedBytes) {
          C10_CUDA_CHECK(cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
        }
        kernel.launch()<<<grid_of(batch * position_tiles * output_tiles), kWarp * kTeam * kTeams, kBytes, stream>>>(
            f, weight, static_cast<const T*>(bias), bias_batch, static_cast<T*>(output), channels_last, position_tiles,
            output_tiles);
      };
      // With few blocks, teams share the steps of each, if the device has enough memory for their stages.
      const auto with_teams = [&](auto tiles) {
        constexpr int kTiles = decltype(tiles)::value;
        constexpr int64_t kEnoughWarps = 12;  // per multiprocessor
        const int64_t warps =
            batch * ceil_div(f.length, kRows) * problem.groups * ceil_div(f.group_outputs, 8 * kTiles);
        const bool few = warps < kEnoughWarps * device_attribute(cudaDevAttrMultiProcessorCount);
        if (few && kForwardBytes<T, kAxes, kTiles, 2, 4> <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) {
          launch(tiles, std::integral_constant<int, 2>(), std::integral_constant<int, 4>());
        } else {
          launch(tiles, std::integral_constant<int, 4>(), std::integral_constant<int, 1>());
        }
      };
      if constexpr (kExact) {
        with_teams(std::integral_constant<int, 4>());
      } else if (f.group_outputs <= 32) {
        with_teams(std::integral_constant<int, 4>());
      } else {
        with_teams(std::integral_constant<int, 8>());
      }
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
