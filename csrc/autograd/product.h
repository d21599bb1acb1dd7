// SPDX-License-Identifier: MIT
// A matrix product whose derivatives, of any order and mode, are not cast where autocast is on. Those of torch's are.
#pragma once

#include <ATen/core/Tensor.h>

namespace ddu {

// [N, rows, inner] times [N, inner, columns], plus a bias [N, rows, 1], which may be undefined.
at::Tensor product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& bias = {});

}  // namespace ddu
