// SPDX-License-Identifier: MIT
// Tensors as the kernels see them.
#pragma once

#include <ATen/core/Tensor.h>

#include "launch.h"

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

inline PositionsView view_positions(const at::Tensor& positions) {
  return with_strides(PositionsView{positions.const_data_ptr(), positions.scalar_type() == at::kFloat}, positions);
}

}  // namespace ddu::cuda
