// SPDX-License-Identifier: MIT
// How the CPU device divides its work, and the views and copies that its kernels use.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace ddu::cpu {

// NOTE [ CPU tasks ]
// Every element of a result is the sum of its terms in an order that depends only on the sizes. So the number of
// threads doesn't change a single bit:
// - columns: an element has one term;
// - image: a task adds to a plane of its own, in the order of the positions. If there are too few planes to keep the
//   threads busy, the positions are divided into bands with a plane each, which are added in the order of the bands;
// - map: the same task writes the sums over the channels of its plane, which are added in the order of the planes.
//   So unfold_backward reads grad_output once.
constexpr int64_t kEnoughTasks = 16;
constexpr int64_t kMaxBands = 4;

// Fewer entries of columns than this don't justify another thread.
constexpr int64_t kGrain = 16384;

// Asks for large pages for memory that is about to be written for the first time, as NumPy does for its arrays. Where
// the kernel leaves the choice to programs, page faults of 4 KiB would otherwise take longer than the work itself.
inline void advise_large_pages([[maybe_unused]] const at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kWorthwhile = size_t(4) << 20;
  constexpr size_t kPage = 4096;
  if (tensor.nbytes() >= kWorthwhile) {
    const auto begin = (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
    const auto end = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + tensor.nbytes();
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only advice: it may be declined
  }
#endif
}

// `work` is the number of entries of columns per task, or of something that takes as long.
template <class F>
void parallel_tasks(int64_t begin, int64_t end, int64_t work, const F& f) {
  at::parallel_for(begin, end, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)), f);
}

template <class F>
void parallel_tasks(int64_t tasks, int64_t work, const F& f) {
  parallel_tasks(0, tasks, work, f);
}

inline int64_t bands_of(const UnfoldParams& p, int64_t planes) {
  const int64_t tiles = ceil_div(positions_of(p), 8 * kTile);
  return std::clamp<int64_t>(std::min(kEnoughTasks / planes, tiles), 1, kMaxBands);
}

// Planes per task, for which positions are located once: as many as the cache holds together, if that leaves enough
// tasks for many threads. `parts` is the number of parts of the positions; `least` planes are always worthwhile.
inline int64_t planes_together(const UnfoldParams& p, int64_t parts, int64_t least, int64_t most) {
  constexpr int64_t kCached = int64_t(1) << 16;  // elements
  const auto l = layout(p);
  const int64_t enough = p.batch * p.groups * l.planes * parts / kEnoughTasks;
  return std::min(std::max(least, std::min({most, kCached / l.plane, enough})), l.planes);
}

// [B, channels, *axes]
template <class S>
Strided<const S*> strided(const at::Tensor& tensor) {
  Strided<const S*> view = {tensor.const_data_ptr<S>(), tensor.stride(0), tensor.stride(1), {}};
  const int64_t axes = tensor.dim() - 2;
  for (int64_t a = 0; a < axes; ++a) {
    view.axis[kMaxAxes - axes + a] = tensor.stride(2 + a);
  }
  return view;
}

template <class scalar_t, class T>
PositionsView<scalar_t, T> view_positions(const at::Tensor& positions) {
  PositionsView<scalar_t, T> view = {};
  if (positions.scalar_type() == c10::CppTypeToScalarType<T>::value) {
    view.computed = strided<T>(positions);
  } else {
    view.stored = strided<scalar_t>(positions);
  }
  return view;
}

// The planes of an image (NOTE [ CPU kernels ]).
template <class scalar_t, class T>
at::Tensor packed(const UnfoldParams& p, const at::Tensor& image) {
  const auto l = layout(p);
  const int64_t planes = p.batch * p.groups * l.planes;
  auto result = at::empty({planes, l.plane}, c10::CppTypeToScalarType<T>::value);
  advise_large_pages(result);
  const auto source = strided<scalar_t>(image);
  auto* const target = result.template mutable_data_ptr<T>();
  parallel_tasks(planes * l.rows, l.plane / l.rows, [&](int64_t begin, int64_t end) {
    kernels<scalar_t, T>().pack(p, source, target, begin, end);
  });
  return result;
}

}  // namespace ddu::cpu
