// SPDX-License-Identifier: MIT
// The largest sample of every window on CUDA: what pool.cu provides to sums_host.cpp. See launch.h.
#pragma once

#include "sums.h"

namespace ddu::cuda {

struct PoolCall {
  ImageView input;
  PositionsView positions;
  bool ignore;           // skip taps outside the image
  bool channels_inside;  // whether a pixel's channels are adjacent
  void* values;          // [B, C, L], with the strides of `grid`
  int64_t* taps;         // likewise; -1 if no tap counts
  GridView grid;
};

struct PoolGradients {
  GridView grad, taps;  // [B, C, L]; taps of int64
  ImageView input;      // read if there are dots
  PositionsView positions;
  bool channels_inside;
  Term terms[kMaxAxes];  // the derivatives with respect to the basis parameters
  int dots;              // how many of them are wanted
  int multiples;         // per dot: see math/positions.h

  ImageView by_input;  // in the type that is computed in, added to; its data is null if not wanted
  void* by_positions;  // [B, G, positions_per_group, dots, multiples, L], likewise
};

// `wide`: offsets need 64 bits.
void launch_pool(const UnfoldParams& p, c10::ScalarType type, bool wide, const PoolCall& call, cudaStream_t stream);

void launch_pool_backward(
    const UnfoldParams& p, c10::ScalarType type, bool wide, const PoolGradients& call, cudaStream_t stream);

}  // namespace ddu::cuda
