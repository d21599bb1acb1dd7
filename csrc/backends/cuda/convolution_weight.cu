// SPDX-License-Identifier: MIT
// The convolution's gradient with respect to the weight.

#include <algorithm>

#include "convolution_impl.h"

namespace ddu::cuda {

namespace {

constexpr int kWeightTile = 64;  // outputs, and channels, per block
constexpr int kWeightThreads = 128;

// Positions at a time.
template <class T>
constexpr int kPositions = sizeof(T) == 2 ? 64 : 32;

// Elements from one position's row to the next in shared memory. Rows of half types are swizzled and rows of floats
// padded, so that reads of a transposed operand have no bank conflicts.
template <class T>
constexpr int kTileRow = sizeof(T) == 2 ? kWeightTile : kWeightTile + 8;

template <class T>
__device__ __forceinline__ int place_in_tile(int position, int j) {
  return position * kTileRow<T> * static_cast<int>(sizeof(T)) + ((sizeof(T) == 2 ? j ^ (position & 7) : j) << 4);
}

// Loads four matrices of 8 x 8 pairs, transposed. `address`, in every lane, is that of a row of one of them.
__device__ __forceinline__ Packet load_transposed(const char* address) {
  Packet r;
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(address));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r.word[0]), "=r"(r.word[1]), "=r"(r.word[2]), "=r"(r.word[3])
               : "r"(at)
               : "memory");
  return r;
}

// sum[m][n]: outputs from 16 m on and channels from 8 n on, of the warp's 32 by 32.
template <class T, bool kExact>
__device__ __forceinline__ void multiply_tiles(
    float (&sum)[2][4][4], const char* grads, const char* samples, int first_output, int first_channel, int lane) {
  if constexpr (sizeof(T) == 2) {
    const int row = lane % 8;
    const int matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < kPositions<T>; k += 16) {
      Packet left[2];
      Packet right[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        left[m] = load_transposed(
            grads + place_in_tile<T>(k + matrix / 2 * 8 + row, (first_output + 16 * m) / 8 + matrix % 2));
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        right[n] = load_transposed(
            samples + place_in_tile<T>(k + matrix % 2 * 8 + row, (first_channel + 16 * n) / 8 + matrix / 2));
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const auto& a = left[m].word;
          const auto& b = right[n / 2].word;
          mma<T>(sum[m][n], a[0], a[1], a[2], a[3], b[n % 2 * 2], b[n % 2 * 2 + 1]);
        }
      }
    }
  } else {
    const int g = lane / kLanes;
    const int q = lane % kLanes;
    const auto word = [](const char* tile, int position, int column) {
      return reinterpret_cast<const unsigned*>(tile)[position * kTileRow<T> + column];
    };
    float part[2][4][4] = {};
#pragma unroll
    for (int k = 0; k < kPositions<T>; k += 8) {
      Operand<T, kExact> left[2];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        Packet packet;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          packet.word[i] = word(grads, k + q + i / 2 * 4, first_output + 16 * m + g + i % 2 * 8);
        }
        left[m] = Operand<T, kExact>(packet);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int column = first_channel + 8 * n + g;
        const Operand<T, kExact> right(Packet{{word(samples, k + q, column), word(samples, k + q + 4, column), 0, 0}});
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const auto product = [&](const Packet& a, const Packet& b) {
            mma<T>(part[m][n], a.word[0], a.word[1], a.word[2], a.word[3], b.word[0], b.word[1]);
          };
          if constexpr (kExact) {
            product(left[m].low, right.high);
            product(left[m].high, right.low);
          }
          product(left[m].high, right.high);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[m][n][i] += part[m][n][i];
        }
      }
    }
  }
}

// A block owns a tap, a tile of outputs, a tile of channels, and a part of the positions: blockIdx.y.
template <class T, int kAxes, bool kExact>
__global__ void __launch_bounds__(kWeightThreads) convolution_weight_kernel(
    const __grid_constant__ Fused f, const T* grad_output, float* partial, int output_tiles, int position_tiles) {
  constexpr int kPacketChannels = 16 / static_cast<int>(sizeof(T));
  constexpr int kPackets = kWeightTile / kPacketChannels;
  constexpr int kTileBytes = kPositions<T> * kTileRow<T> * static_cast<int>(sizeof(T));
  __shared__ __align__(16) char samples[kTileBytes];
  __shared__ __align__(16) char grads[kTileBytes];
  __shared__ Sampled<T, kAxes> sampled[kPositions<T>];

  int block = static_cast<int>(blockIdx.x);
  const int output_tile = block % output_tiles;
  block /= output_tiles;
  const int tap = block % f.taps;
  const int channel_tile = block / f.taps;
  const int tiles_of_run = (f.run + kWeightTile - 1) / kWeightTile;
  const int run = channel_tile / tiles_of_run;
  const int in_run = channel_tile % tiles_of_run * kWeightTile;
  const int group = run * f.run / f.group_channels;
  const int first_output = output_tile * kWeightTile;  // within the group

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp;
  const int warp = thread / kWarp;
  const int64_t tiles = static_cast<int64_t>(f.p.batch) * position_tiles;
  const int64_t begin = tiles * blockIdx.y / gridDim.y;
  const int64_t end = tiles * (blockIdx.y + 1) / gridDim.y;

  float sum[2][4][4] = {};
  for (int64_t tile = begin; tile < end; ++tile) {
    const int b = static_cast<int>(tile / position_tiles);
    const int first = static_cast<int>(tile % position_tiles) * kPositions<T>;
    if (thread < kPositions<T>) {
      auto locator = locator_at<T, kAxes>(f, b, first + thread);
      locator.begin(tap);
      locator.load_parameters(run * f.run, tap);
      sampled[thread].set(locator, run * f.run, tap);
    }
    __syncthreads();
    const CornerPackets<kAxes> image(f, b);
#pragma unroll
    for (int e = thread; e < kPositions<T> * kPackets; e += kWeightThreads) {
      const int position = first + e / kPackets;
      const int o = first_output + e % kPackets * kPacketChannels;
      const bool valid = position < f.length && o < f.group_outputs;
      copy_async(
          grads + place_in_tile<T>(e / kPackets, e % kPackets),
          valid
              ? grad_output + (static_cast<int64_t>(b) * f.length + position) * f.outputs + group * f.group_outputs + o
              : grad_output,
          valid);
    }
    commit_copies();
#pragma unroll
    for (int e = thread; e < kPositions<T> * kPackets; e += kWeightThreads) {
      const auto at = sampled[e / kPackets];
      const int channel = in_run + e % kPackets * kPacketChannels;
      uint4 corner[1 << kAxes];
      image.gather(at.offset + (run * f.run + channel) / kPacketChannels, channel < f.run ? at.inside : 0u, corner);
      Packet packet = interpolate<T, kAxes>(corner, at.factor);
      if (channel >= f.run) {
        packet = {};
      }
      *reinterpret_cast<uint4*>(samples + place_in_tile<T>(e / kPackets, e % kPackets)) =
          make_uint4(packet.word[0], packet.word[1], packet.word[2], packet.word[3]);
    }
    wait_for_copies<0>();
    __syncthreads();
    multiply_tiles<T, kExact>(sum, grads, samples, warp / 2 * 32, warp % 2 * 32, lane);
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int o = first_output + warp / 2 * 32 + 16 * m + i / 2 * 8 + lane / kLanes;
        const int channel = in_run + warp % 2 * 32 + 8 * n + 2 * (lane % kLanes) + i % 2;
        if (o < f.group_outputs && channel < f.run) {
          const int64_t row =
              (static_cast<int64_t>(blockIdx.y) * f.taps + tap) * f.outputs + group * f.group_outputs + o;
          partial[row * f.group_channels + run * f.run % f.group_channels + channel] = sum[m][n][i];
        }
      }
    }
  }
}

}  // namespace

namespace {

int64_t position_tiles(const FusedProblem& problem, c10::ScalarType type) {
  return ceil_div<int64_t>(
      positions_of(problem.p), type == c10::ScalarType::Float ? kPositions<float> : kPositions<c10::Half>);
}

// The number of blocks per split.
int64_t weight_blocks(const FusedProblem& problem) {
  const int64_t tiles_of_run = ceil_div<int64_t>(problem.run, kWeightTile);
  return ceil_div<int64_t>(problem.outputs / problem.groups, kWeightTile) * taps_of(problem.p) *
      (problem.p.channels / problem.run) * tiles_of_run;
}

}  // namespace

int64_t position_splits(const FusedProblem& problem, c10::ScalarType type, bool weight_per_image) {
  constexpr int64_t kEnoughBlocks = 6;  // per multiprocessor
  const int64_t images = weight_per_image ? problem.p.batch : 1;
  const int64_t tiles = position_tiles(problem, type) * (weight_per_image ? 1 : problem.p.batch);
  const int64_t splits = ceil_div<int64_t>(
      kEnoughBlocks * device_attribute(cudaDevAttrMultiProcessorCount), images * weight_blocks(problem));
  return images * std::max<int64_t>(1, std::min(splits, tiles));
}

void launch_convolution_weight(
    const FusedProblem& problem,
    c10::ScalarType type,
    const void* grad_output,
    int64_t splits,
    float* partial,
    cudaStream_t stream) {
  const auto f = fused(problem, type);
  const int output_tiles = ceil_div(f.group_outputs, kWeightTile);
  const int tiles = static_cast<int>(position_tiles(problem, type));
  const dim3 grid(grid_of(weight_blocks(problem)), static_cast<unsigned>(splits));
  dispatch_axes(problem.p, [&](auto axes) {
    dispatch_product(type, problem.exact, [&](auto zero, auto exact) {
      using T = decltype(zero);
      const auto kernel = counted<convolution_weight_kernel<T, decltype(axes)::value, decltype(exact)::value>>();
      kernel.launch()<<<grid, kWeightThreads, 0, stream>>>(
          f, static_cast<const T*>(grad_output), partial, output_tiles, tiles);
    });
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddu::cuda
