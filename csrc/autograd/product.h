// SPDX-License-Identifier: MIT
// A matrix product whose derivatives, of any order and mode, autocast doesn't cast, unlike those of torch's.
#pragma once

#include <ATen/core/Tensor.h>

namespace ddu {

// [N, rows, inner] times [N, inner, columns], plus an optional bias [N, rows, 1].
at::Tensor product(const at::Tensor& left, const at::Tensor& right, const at::Tensor& bias = {});

}  // namespace ddu
