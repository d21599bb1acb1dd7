// SPDX-License-Identifier: MIT
// The convolution's gradient with respect to the input: NOTE [ Fused convolution ], NOTE [ Additions ].

#include <algorithm>

#include "additions.h"
#include "convolution_impl.h"

namespace ddu::cuda {

namespace {

// Positions per tile: 16 rows of the product for each warp.
constexpr int kLog2Positions = 7;
constexpr int kTilePositions = 1 << kLog2Positions;
constexpr int kTeam = kTilePositions / 16;
constexpr int kThreads = kTeam * kWarp;
constexpr int kResident = 2;    // blocks per multiprocessor
constexpr int kRowPackets = 8;  // in a tap's columns: the channels of a chunk

// What a tap's position adds to a pixel.
struct alignas(8) Share {
  int column;  // offset of its row of columns, in bytes, and the bits that place_in_stage flips
  float weight;
};

// Taps whose shares are sorted together.
template <int kAxes>
constexpr int kTogether = kAxes == 3 ? 2 : 3;

template <int kAxes>
constexpr int kSpots = (kTogether<kAxes> * kTilePositions + kThreads - 1) / kThreads;

// Size of the ring of stages, for the channels of a chunk.
template <class T>
constexpr int kRingBytes = kStages * kDepth<T> * kStepBytes;

// A block owns a tile of positions, a part of the taps (blockIdx.y) and a part of the channels (blockIdx.z). For a few
// taps at a time, it sorts what they add to the image. Then, one chunk of channels after the other, it computes the
// gradient of their columns and sums it by pixel.
template <class T, int kAxes, bool kExact>
__global__ void __launch_bounds__(kThreads, kResident) convolution_input_kernel(
    const __grid_constant__ Fused f,
    const __grid_constant__ WeightView weight,
    const __grid_constant__ Tiles tiles,
    const T* grad_output,
    float* grad_input) {
  constexpr int kPacketChannels = 16 / static_cast<int>(sizeof(T));
  constexpr int kChannels = kDepth<T>;
  constexpr int kTiles = kChannels / 8;
  constexpr int kStageBytes = kChannels * kStepBytes;
  constexpr int kCorners = 1 << kAxes;
  constexpr int kTilesOfPacket = kPacketChannels / 2;
  constexpr int kTapBytes = kTilePositions * kStepBytes;
  extern __shared__ uint4 shared[];
  char* const ring = reinterpret_cast<char*>(shared);
  char* const columns = ring + kRingBytes<T>;
  PixelLists<kAxes, kThreads, Share> lists(columns + kTogether<kAxes> * kTapBytes, kTogether<kAxes> * kTilePositions);

  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const int g = lane / kLanes;
  const int q = lane % kLanes;
  const int b = static_cast<int>(blockIdx.x) / tiles.total();
  const int tile = static_cast<int>(blockIdx.x) % tiles.total();
  const T* const matrix = static_cast<const T*>(weight.data) + b * weight.batch;
  float* const sums = grad_input + b * (f.input_batch / static_cast<int>(sizeof(T)));

  const int parts = (f.taps + kTogether<kAxes> - 1) / kTogether<kAxes>;
  const int first_tap = parts * static_cast<int>(blockIdx.y) / static_cast<int>(gridDim.y) * kTogether<kAxes>;
  const int last_tap =
      min(f.taps, parts * (static_cast<int>(blockIdx.y) + 1) / static_cast<int>(gridDim.y) * kTogether<kAxes>);
  // A unit is a chunk of a run's channels.
  const int chunks = (f.run + kChannels - 1) / kChannels;
  const int units = f.channels / f.run * chunks;
  const auto part_of_units = [&](unsigned z) { return static_cast<int>(static_cast<int64_t>(units) * z / gridDim.z); };
  const int first_unit = part_of_units(blockIdx.z);
  const int last_unit = part_of_units(blockIdx.z + 1);
  const int depths = (f.group_outputs + kDepth<T> - 1) / kDepth<T>;
  const int steps = (last_tap - first_tap) * (last_unit - first_unit) * depths;

  // The order of the steps: groups of taps, units, taps of the group, depths.
  int ahead_start = first_tap;
  int ahead_unit = first_unit;
  int ahead_channel = first_unit / chunks * f.run + first_unit % chunks * kChannels;
  int ahead_end = first_unit / chunks * f.run + f.run;  // the end of the run
  int ahead_tap = 0;
  int ahead_depth = 0;
  const auto fill = [&](int slot) {
    const int depth = ahead_depth * kDepth<T>;
    const T* const from = matrix + (ahead_start + ahead_tap) * weight.tap + ahead_channel * weight.row + depth;
    const auto valid = [&](int row, int element) {
      return ahead_channel + row < ahead_end && depth + element < f.group_outputs;
    };
    fill_stage<kChannels, kThreads>(ring + slot * kStageBytes, from, weight.row, valid, matrix, thread);
    if (++ahead_depth == depths) {
      ahead_depth = 0;
      if (++ahead_tap == min(kTogether<kAxes>, last_tap - ahead_start)) {
        ahead_tap = 0;
        if (++ahead_unit == last_unit) {
          ahead_unit = first_unit;
          ahead_start += kTogether<kAxes>;
        }
        ahead_channel = ahead_unit / chunks * f.run + ahead_unit % chunks * kChannels;
        ahead_end = ahead_unit / chunks * f.run + f.run;
      }
    }
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) {
      fill(s);
    }
    commit_copies();
  }

  // A thread locates the taps of one position, and multiplies rows of two others.
  int index[kAxes];
  const int located = position_in_tile<kAxes>(f, tiles, tile, thread % kTilePositions, index);
  MaskedLocator<T, kAxes> locator(f, b, located, index);
  const T* row_grad[2];
  bool row_valid[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int unused[kAxes];
    const int position = position_in_tile<kAxes>(f, tiles, tile, warp * 16 + half * 8 + g, unused);
    row_valid[half] = position >= 0;
    row_grad[half] = grad_output + (static_cast<int64_t>(b) * f.length + max(position, 0)) * f.outputs;
  }

  int step_number = 0;
  int slot = 0;
  for (int start = first_tap; start < last_tap; start += kTogether<kAxes>) {
    const int count = min(kTogether<kAxes>, last_tap - start);
    for (int unit = first_unit; unit < last_unit; ++unit) {
      const int run_channel = unit / chunks * f.run;
      const int chunk = unit % chunks;
      const int group = run_channel / f.group_channels;
      const bool moved = run_channel % f.position_run == 0 || run_channel % f.mask_run == 0;
      if (unit == first_unit || (chunk == 0 && moved)) {
        const auto tap_of = [&](int s) { return thread / kTilePositions + s * (kThreads / kTilePositions); };
        Spot<kAxes> spot[kSpots<kAxes>];
#pragma unroll
        for (int s = 0; s < kSpots<kAxes>; ++s) {
          const int t = tap_of(s);
          spot[s].inside = 0;
          if (t < count && locator.valid) {
            locator.begin(start + t);
            locator.load_parameters(run_channel, start + t);
            Neighbours<float, int> n[kAxes];
            locator.locate(n);
            AxisWeights<float> along[kAxes];
#pragma unroll
            for (int a = 0; a < kAxes; ++a) {
              along[a] = axis_weights(n[a].fraction, n[a].direction);
              spot[s].pixel[a] = n[a].pixel;
            }
            const float mask = locator.load_mask(run_channel, start + t);
            spot[s].inside = locator.finite ? locator.inside(n) : 0u;
#pragma unroll
            for (int c = 0; c < kCorners; ++c) {
              spot[s].weight[c] = mask * corner_weight(along, 0, c);
            }
          }
        }
        lists.build(f, spot, [&](int s) {
          return Share{tap_of(s) * kTapBytes + place_in_stage(thread % kTilePositions, 0), 0.f};
        });
      }
      for (int t = 0; t < count; ++t) {
        float sum[1][kTiles][4] = {};
        for (int depth = 0; depth < depths; ++depth, ++step_number) {
          wait_for_copies<kStages - 2>();
          __syncthreads();
          if (step_number + kStages - 1 < steps) {
            fill(slot == 0 ? kStages - 1 : slot - 1);
          }
          commit_copies();
          const char* const stage = ring + slot * kStageBytes;
          slot = slot == kStages - 1 ? 0 : slot + 1;
          add_step<kExact>(sum, [&](auto& part) {
#pragma unroll
            for (int segment = 0; segment < kSegments; ++segment) {
              const int o = depth * kDepth<T> + (segment * kLanes + q) * kPacketChannels;
              if (depth * kDepth<T> + segment * kLanes * kPacketChannels >= f.group_outputs) {
                break;
              }
              Operand<T, kExact> left[2];
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                const auto packet = load_packet_if(
                    row_valid[half] && o < f.group_outputs ? 1u : 0u, row_grad[half] + group * f.group_outputs + o);
                left[half] = Operand<T, kExact>(packet_of(packet));
              }
              multiply_segment<kPacketChannels>(part, left, stage, segment, g, q);
            }
          });
        }

        // sum is the columns' gradient, for rows g and 8 + g. Of every kLanes * kPacketChannels channels, lane q has
        // packet q.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int packet = 0; packet < kTiles / kTilesOfPacket; ++packet) {
            uint4 rounded;
            auto* const elements = reinterpret_cast<T*>(&rounded);
#pragma unroll
            for (int k = 0; k < kPacketChannels; ++k) {
              elements[k] = static_cast<T>(sum[0][packet * kTilesOfPacket + k / 2][half * 2 + k % 2]);
            }
            *reinterpret_cast<uint4*>(
                columns + t * kTapBytes + place_in_stage(warp * 16 + half * 8 + g, packet * kLanes + q)) = rounded;
          }
        }
      }
      __syncthreads();
      const int j = thread % kRowPackets;
      const int channel = chunk * kChannels + j * kPacketChannels;
      if (channel < f.run) {
        lists.for_pixels(thread / kRowPackets, kThreads / kRowPackets, [&](int pixel, const Share* shares, int n) {
          float all[kPacketChannels] = {};
          for (int i = 0; i < n; ++i) {
            const Share one = shares[i];
            const uint4 packet = *reinterpret_cast<const uint4*>(columns + (one.column ^ (j << 4)));
#pragma unroll
            for (int k = 0; k < kPacketChannels; ++k) {
              all[k] = fmaf(one.weight, element<T>(packet, k), all[k]);
            }
          }
          float* const to = sums + static_cast<int64_t>(pixel) * f.channels + run_channel + channel;
#pragma unroll
          for (int k = 0; k < kPacketChannels; k += 4) {
            add4(to + k, all[k], all[k + 1], all[k + 2], all[k + 3]);
          }
        });
      }
      // The next columns are written after a barrier: that of the step's copies, or that of the lists.
    }
  }
  wait_for_copies<0>();
}

}  // namespace

void launch_convolution_input(
    const FusedProblem& problem,
    c10::ScalarType type,
    const WeightView& weight,
    const void* grad_output,
    float* grad_input,
    cudaStream_t stream) {
  const auto f = fused(problem, type);
  const auto tiles = tiles_of(problem.p, kLog2Positions);
  dispatch_axes(problem.p, [&](auto axes) {
    dispatch_product(type, problem.exact, [&](auto zero, auto exact) {
      using T = decltype(zero);
      constexpr int kAxes = decltype(axes)::value;
      const int64_t blocks = problem.p.batch * tiles.total();
      const int64_t units = f.channels / f.run * ceil_div(f.run, kDepth<T>);
      const int64_t splits = splits_of(blocks, ceil_div(f.taps, kTogether<kAxes>), kResident);
      const int64_t unit_splits = splits_of(blocks * splits, units, kResident);
      constexpr int kSpotsOfBlock = kTogether<kAxes> * kTilePositions;
      constexpr int kBytes = kRingBytes<T> + kSpotsOfBlock * kStepBytes +
          static_cast<int>(PixelLists<kAxes, kThreads, Share>::bytes(kSpotsOfBlock));
      static_assert(kBytes <= 99 << 10);  // what a block can have from compute capability 8.0 on
      const auto kernel = counted<convolution_input_kernel<T, kAxes, decltype(exact)::value>>();
      C10_CUDA_CHECK(cudaFuncSetAttribute(kernel.pointer, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
      kernel.launch()<<<
          dim3(grid_of(blocks), static_cast<unsigned>(splits), static_cast<unsigned>(unit_splits)), kThreads, kBytes,
          stream>>>(f, weight, tiles, static_cast<const T*>(grad_output), grad_input);
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
