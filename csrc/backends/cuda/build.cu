// SPDX-License-Identifier: MIT
#include "build.h"

#include <cuda_runtime_api.h>

#define DDU_QUOTED(...) #__VA_ARGS__
#define DDU_TEXT(...) DDU_QUOTED(__VA_ARGS__)

namespace ddu::cuda {

std::string build() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) +
      " for __CUDA_ARCH__ " DDU_TEXT(__CUDA_ARCH_LIST__);  // defined by nvcc
}

}  // namespace ddu::cuda
