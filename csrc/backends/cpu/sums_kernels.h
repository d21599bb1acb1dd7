// SPDX-License-Identifier: MIT
// The CPU's kernels for the sums of windows (NOTE [ One form ]): the interface between sums.cpp and sums_impl.h, like
// kernels.h for columns.
#pragma once

#include "kernels.h"

namespace ddu::cpu {

// The arguments of the form, null where missing, and its contractions, null where not wanted.
template <class scalar_t, class T>
struct Sums {
  int64_t mask_groups;
  Strided<const scalar_t*> query;
  Strided<const scalar_t*> mask;
  Strided<const T*> weight;  // [B, C, taps]: taps are the last axis
  Strided<const int64_t*> taps;
  PositionsView<scalar_t, T> positions;
  const T* input;  // planes

  // Computed by `gather`, whose tasks are strips of an image's tiles.
  int64_t strips;
  scalar_t* by_query;  // with the three strides
  int64_t batch, channel, position;
  T* by_mask;       // [B, M * taps, L], added to
  T* by_weight;     // [B, strips, C, taps], added to
  T* by_positions;  // [B, G, positions_per_group, count, multiples, L], added to
  const Term* terms;
  int64_t count;
  int64_t multiples;  // per derivative: see math/positions.h

  // Computed by `scatter`, whose tasks are a plane and a band each, as in `reduce`.
  int64_t bands;
  T* image;  // planes, [bands, B * G, planes, ...]
};

// The largest sample of every window, and its tap. A task is one tile of positions of an image.
template <class scalar_t, class T>
struct Pool {
  PositionsView<scalar_t, T> positions;
  const T* input;  // planes
  bool ignore;     // skip taps outside the image
  scalar_t* values;
  int64_t* taps;
  int64_t batch, channel, position;  // strides of both
};

// Planes of a group that are processed together: enough to pay for locating the taps, few enough for their sums to stay
// in the cache.
constexpr int64_t kSumPlanes = 4;

inline int64_t pool_tasks(const UnfoldParams& p) {
  return p.batch * p.groups * ceil_div(layout(p).planes, kSumPlanes) * ceil_div(positions_of(p), kTile);
}

template <class scalar_t, class T>
struct SumsKernels {
  void (*gather)(const UnfoldParams& p, const Sums<scalar_t, T>& sums, int64_t begin, int64_t end);
  void (*scatter)(const UnfoldParams& p, const Sums<scalar_t, T>& sums, int64_t begin, int64_t end);
  void (*pool)(const UnfoldParams& p, const Pool<scalar_t, T>& pool, int64_t begin, int64_t end);
};

template <class scalar_t, class T>
const SumsKernels<scalar_t, T>& sums_kernels();

}  // namespace ddu::cpu
