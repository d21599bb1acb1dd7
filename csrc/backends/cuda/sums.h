// SPDX-License-Identifier: MIT
// The sums of windows (NOTE [ One form ]) on CUDA: what sums.cu provides to sums_host.cpp. See launch.h.
#pragma once

#include "launch.h"

namespace ddu::cuda {

// Entries over the output grid, with any strides; they need not be pixel-major.
struct GridView {
  const void* data;
  int64_t batch, channel, position;
};

// The arguments of the form, null where missing, and its contractions, null where not wanted. Tensors with channels are
// pixel-major: a pixel's channels are adjacent.
struct SumsCall {
  const void* query;   // [B, L, C]
  const void* input;   // [B, pixels, C]
  const void* weight;  // [B, taps, C]
  int64_t weight_batch;
  GridView mask;  // [B, M * taps, L]
  PositionsView positions;
  int64_t mask_groups;
  Term terms[kMaxAxes];  // the derivatives with respect to the basis parameters
  int dots;              // how many of them are wanted
  int multiples;         // per dot: see math/positions.h

  void* by_query;      // [B, L, C]
  GridView by_mask;    // [B, M * taps, L]
  float* by_input;     // [B, pixels, C], added to
  void* by_positions;  // [B, G, positions_per_group, dots, multiples, L], in the type of the positions
};

// Whether the kernel can compute a call. The channels of groups must be whole packets of 16 bytes, and if a mask group
// is summed over, it must lie within one group of the positions.
bool sums_possible(const UnfoldParams& p, c10::ScalarType type, int64_t mask_groups, bool by_mask);

constexpr int kPositionBits = 27;  // for the number of an output position

// Computes what a call wants; a separate kernel adds to by_input: sums_input.cu.
void launch_sums(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream);
void launch_sums_input(const UnfoldParams& p, c10::ScalarType type, const SumsCall& call, cudaStream_t stream);

}  // namespace ddu::cuda
