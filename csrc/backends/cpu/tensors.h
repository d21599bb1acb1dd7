// SPDX-License-Identifier: MIT
// Tensors and threads of the CPU device.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace ddu::cpu {

// Fewer entries of columns than this are not worth another thread.
constexpr int64_t kGrain = 16384;

// As many tasks keep the threads busy.
constexpr int64_t kEnoughTasks = 16;
constexpr int64_t kMaxBands = 4;

// Asks for large pages for memory that is about to be written for the first time, as NumPy does for its arrays: where
// the kernel leaves the choice to the program, page faults of 4 KiB would take longer than the work itself.
inline void advise_large_pages([[maybe_unused]] const at::Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kWorthwhile = size_t(4) << 20;
  constexpr size_t kPage = 4096;
  if (tensor.nbytes() >= kWorthwhile) {
    const auto begin = (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
    const auto end = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + tensor.nbytes();
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: it may be declined
  }
#endif
}

// work: entries of columns, or what takes as long, in each of the tasks.
template <class F>
void parallel_tasks(int64_t begin, int64_t end, int64_t work, const F& f) {
  at::parallel_for(begin, end, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)), f);
}

template <class F>
void parallel_tasks(int64_t tasks, int64_t work, const F& f) {
  parallel_tasks(0, tasks, work, f);
}

// Bands of positions with memory of their own, for so many tasks without them.
inline int64_t bands_of(const UnfoldParams& p, int64_t tasks) {
  const int64_t tiles = ceil_div(positions_of(p), 8 * kTile);
  return std::clamp<int64_t>(std::min(kEnoughTasks / tasks, tiles), 1, kMaxBands);
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
PositionsView<scalar_t, T> positions_view(const at::Tensor& positions) {
  PositionsView<scalar_t, T> view = {};
  if (positions.scalar_type() == c10::CppTypeToScalarType<T>::value) {
    view.computed = strided<T>(positions);
  } else {
    view.stored = strided<scalar_t>(positions);
  }
  return view;
}

}  // namespace ddu::cpu
