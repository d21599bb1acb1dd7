// SPDX-License-Identifier: MIT
// Tensors as the kernels see them.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "launch.h"
#include "launches.h"

namespace ddu::cuda {

// The strides of a tensor [B, channels, *axes].
template <class View>
View with_strides(View view, const at::Tensor& tensor) {
  view.batch = tensor.stride(0);
  view.channel = tensor.stride(1);
  const int64_t axes = tensor.dim() - 2;
  for (int64_t a = 0; a < axes; ++a) {
    view.axis[kMaxAxes - axes + a] = tensor.stride(2 + a);
  }
  return view;
}

inline ImageView view_image(const at::Tensor& image) { return with_strides(ImageView{image.const_data_ptr()}, image); }

inline PositionsView view_positions(const at::Tensor& positions) {
  return with_strides(PositionsView{positions.const_data_ptr(), positions.scalar_type() == at::kFloat}, positions);
}

// Whether 32 bits are too few for the offsets of all elements.
inline bool is_wide(const at::Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    last += (tensor.size(d) - 1) * tensor.stride(d);
  }
  return forced.wide || std::max(last, tensor.numel()) >= (int64_t(1) << 31) - (int64_t(1) << 16);
}

}  // namespace ddu::cuda
