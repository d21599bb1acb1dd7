// SPDX-License-Identifier: MIT
// What the kernels of the fused convolution provide to convolution.cpp: NOTE [ Fused convolution ].
#pragma once

#include <c10/core/ScalarType.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "../../params.h"
#include "launch.h"

namespace ddu::cuda {

// A convolution whose samples stay on the chip. Channels are divided into runs that share positions, mask and the
// weight's rows; a group of the convolution has `runs` of them. All tensors but the positions and the mask are
// channels-last, and every run consists of whole packets of 16 bytes.
struct FusedProblem {
  UnfoldParams p;       // p.groups are those of the positions
  int64_t groups;       // of the convolution
  int64_t outputs;      // channels of the output
  int64_t mask_groups;  // 1 without a mask
  int64_t run;          // channels per run
  bool exact;           // in float: compute the product in float32, not in TF32

  const void* input;  // [B, pixels, C], contiguous
  PositionsView positions;
  const void* mask;  // [B, mask_groups * taps, L], contiguous along L, any other strides; or nullptr
  int64_t mask_batch, mask_channel;
};

// Strides, in elements, of a weight [(B,) taps, rows, depth] whose depth is contiguous.
struct WeightView {
  const void* data;
  int64_t batch, tap, row;
};

// Channels per packet.
inline int64_t packet_of(c10::ScalarType type) { return 16 / static_cast<int64_t>(c10::elementSize(type)); }

// At most so many outputs to a tile; the forward samples again for every tile.
constexpr int64_t outputs_of_tile(bool exact) { return exact ? 32 : 64; }

// [B, channels, L], contiguous along L, to [B, L, channels].
void launch_channels_last(
    c10::ScalarType type,
    const void* from,
    int64_t from_batch,
    int64_t from_channel,
    void* to,
    int64_t batch,
    int64_t channels,
    int64_t length,
    cudaStream_t stream);

// [B, L, channels] to [B, channels, L] of `type`.
void launch_channels_first(
    c10::ScalarType type,
    const float* from,
    void* to,
    int64_t batch,
    int64_t channels,
    int64_t length,
    cudaStream_t stream);

// output = bias + sum of weight * mask * sample. Rows of the weight are outputs, its depth the channels of a group.
//   bias    [outputs], or [B, outputs]; or nullptr
//   output  [B, L, outputs] if channels_last, else [B, outputs, L]
void launch_convolution(
    const FusedProblem& problem,
    c10::ScalarType type,
    const WeightView& weight,
    const void* bias,
    int64_t bias_batch,
    void* output,
    bool channels_last,
    cudaStream_t stream);

// The gradients with respect to what the weight is multiplied by. Rows of the weight are channels, its depth the
// outputs of a group.
//   grad_output     [B, L, outputs]
//   grad_input      [B, pixels, C], float, is added to
//   grad_positions  [splits, B, positions' channels, L], float, or nullptr
//   grad_mask       [B, mask_groups * taps, L], float, or nullptr
void launch_convolution_input(
    const FusedProblem& problem,
    c10::ScalarType type,
    const WeightView& weight,
    const void* grad_output,
    float* grad_input,
    cudaStream_t stream);

void launch_convolution_positions(
    const FusedProblem& problem,
    c10::ScalarType type,
    const WeightView& weight,
    const void* grad_output,
    float* grad_positions,
    float* grad_mask,
    cudaStream_t stream);

// How many parts of the taps launch_convolution_positions processes in parallel.
int64_t tap_splits(const FusedProblem& problem);

// How many parts of an image's positions, or of the batch's, launch_convolution_weight processes in parallel.
int64_t position_splits(const FusedProblem& problem, c10::ScalarType type, bool weight_per_image);

// The gradient with respect to the weight.
//   partial  [splits, taps, outputs, channels of a group], float; with weight_per_image the splits go image by image
void launch_convolution_weight(
    const FusedProblem& problem,
    c10::ScalarType type,
    const void* grad_output,
    int64_t splits,
    float* partial,
    cudaStream_t stream);

}  // namespace ddu::cuda
