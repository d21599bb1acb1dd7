// SPDX-License-Identifier: MIT
// The sums of windows (NOTE [ One form ]) on CUDA: what sums.cu offers to sums_host.cpp. See launch.h.
#pragma once

#include "launch.h"

namespace ddu::cuda {

// Entries over the output grid, with any strides; they need not be pixel-major.
struct GridView {
  const void* data;
  int64_t batch, channel, position;
};

// The arguments of the form, null where they are left out, and its contractions, null where they are not wanted. What
// has channels is pixel-major: they lie side by side.
struct SumsCall {
  const void* query;   // [B, L, C]
  const void* input;   // [B, pixels, C]
  const void* weight;  // [B, taps, C]
  int64_t weight_batch;
  GridView mask;  // [B, M * taps, L]
  PositionsView positions;
  int64_t mask_groups;
  Term terms[kMaxAxes];  // the derivatives by the parameters: the bases of all
  int dots;              // how many of them are wanted
  int multiples;         // of each: math/positions.h

  void* by_query;      // [B, L, C]
  GridView by_mask;    // [B, M * taps, L]
  float* by_input;     // [B, pixels, C], added to
  void* by_positions;  // [B, G, positions_per_group, dots, multiples, L], of the type of the positions
};

// Whether the kernel can do a call: the groups of channels are whole packets of 16 bytes, and no group of the mask that
// is summed over reaches into two groups of the positions.
bool sums_possible(const UnfoldParams& p, c10::ScalarType type, int64_t mask_groups, bool by_mask);

constexpr int kPositionBits = 27;  // of an output position

// What is wanted of a call; by_input is added to, from a kernel of its own: sums_input.cu.
void launch_sums(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream);
void launch_sums_input(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream);

}  // namespace ddu::cuda
