// SPDX-License-Identifier: MIT
// The CPU device's computations on raw memory: the interface between cpu.cpp, which divides the work into tasks, and
// kernels_impl.h, which is compiled once for each instruction set.

// NOTE [ CPU kernels ]
// Images are read from, and added into, padded planes. A plane holds kLanes channels of one group, channels innermost,
// in the type that sums are computed in: [D + 3, H + 3, W + 3, kLanes] for three axes, with the image at (2, 2, 2) and
// zeros around it. (The last plane of a group is padded with channels of zeros.)
//
// - Every corner of a tap has an address. The corners of a tap without a neighbour in the image (kNoPixel) are all read
//   as zeros, and additions to them are dropped with the border. So the loops need no masks and no special cases, and
//   an infinite pixel cannot leak, through a weight of zero, into a window next to it.
// - A tap's corner is kLanes consecutive numbers: loads, sums and stores are vectors, and the address and the weights,
//   which don't depend on the channel, are used kLanes times.
// - Strides and types of the tensors only matter when rows of them are copied to or from a tile.
//
// Positions are processed in tiles of kTile. Within a tile, locations and weights are computed with one lane per
// position, and entries of columns are transposed from rows of positions into rows of channels, or back.
#pragma once

#include <cstdint>

#include "../../math/positions.h"
#include "../../params.h"

namespace ddu::cpu {

constexpr int64_t kTile = 128;
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the channels of a call are laid out in planes.
struct Layout {
  int64_t lanes;      // channels per plane: 1, 4, 8 or, in a convolution, 16
  int64_t per_group;  // channels per group
  int64_t planes;     // planes per group
  int64_t rows;       // rows of pixels in a plane, along the last axis
  int64_t plane;      // elements per plane
};

inline Layout layout_of(const UnfoldParams& p, int64_t lanes) {
  const int64_t per_group = p.channels / p.groups;
  int64_t rows = 1;
  for (int a = p.first_axis(); a + 1 < kMaxAxes; ++a) {
    rows *= padded(p.axis[a].size);
  }
  return {lanes, per_group, ceil_div(per_group, lanes), rows, rows * padded(p.axis[kMaxAxes - 1].size) * lanes};
}

inline Layout layout(const UnfoldParams& p) {
  const int64_t per_group = p.channels / p.groups;
  return layout_of(p, per_group <= 1 ? 1 : per_group <= 4 ? 4 : 8);
}

// A tensor with any strides, in elements. There is one for each of kMaxAxes: 0 for axes that the problem lacks.
template <class Pointer>
struct Strided {
  Pointer data;
  int64_t batch;
  int64_t channel;  // in columns: the stride between rows
  int64_t axis[kMaxAxes];
};

// A tensor whose pixels or positions are evenly spaced, in order: contiguous or channels-last.
template <class Pointer>
struct Dense {
  Pointer data;
  int64_t batch;
  int64_t channel;
  int64_t pixel;
};

// Positions, [B, channels, *out], in the type of the other tensors or in the type that sums are computed in.
template <class scalar_t, class T>
struct PositionsView {
  Strided<const scalar_t*> stored;  // data is null if they have type T
  Strided<const T*> computed;
};

// One pass over columns. It adds term `splat` of them to `image`, and writes to `sums` their products with the `count`
// terms `dot` of `input`, summed over the channels of a plane. Either may be omitted.
template <class scalar_t, class T>
struct Reduction {
  Strided<const scalar_t*> columns;  // L is the last axis
  PositionsView<scalar_t, T> positions;
  int64_t together;
  int64_t bands;
  const Term* splat;
  T* image;  // planes, [bands, B * G, planes, ...], or null
  const Term* dot;
  int64_t count;
  int64_t multiples;  // per dot: see math/positions.h
  const T* input;     // planes, or null
  T* sums;            // [planes, B * G, positions_per_group, count, multiples, L]
};

// Each function does the tasks [begin, end) of its call; no two tasks write to the same place.
template <class scalar_t, class T>
struct Kernels {
  // image -> planes. A task is one padded row of a plane.
  void (*pack)(const UnfoldParams& p, Strided<const scalar_t*> image, T* planes, int64_t begin, int64_t end);

  // The sum of `copies` sets of planes -> image, contiguous. A task is one row of the image, for all lanes of a plane.
  void (*unpack)(const UnfoldParams& p, const T* planes, int64_t copies, scalar_t* image, int64_t begin, int64_t end);

  // columns, contiguous. A task is one tile of positions for `together` planes of a group.
  void (*sample)(
      const UnfoldParams& p,
      int64_t together,
      const T* planes,
      const PositionsView<scalar_t, T>& positions,
      scalar_t* columns,
      int64_t begin,
      int64_t end);

  // A task is `together` planes of a group and one band of positions; each band adds to planes of its own.
  void (*reduce)(const UnfoldParams& p, const Reduction<scalar_t, T>& reduction, int64_t begin, int64_t end);
};

// The number of tasks of a call, each with `together` planes and one of the `parts` of the positions.
inline int64_t tasks_of(const UnfoldParams& p, int64_t together, int64_t parts) {
  return p.batch * p.groups * ceil_div(layout(p).planes, together) * parts;
}

// The kernels for this machine's instruction set, or for the one that ATEN_CPU_CAPABILITY asks for.
template <class scalar_t, class T>
const Kernels<scalar_t, T>& kernels();

// The name of that instruction set, as in torch.
const char* capability_name();

}  // namespace ddu::cpu
