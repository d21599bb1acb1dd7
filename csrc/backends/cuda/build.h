// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace ddu::cuda {

// The toolkit and the architectures of the kernels, such as "13.0 for 80,90".
std::string build();

}  // namespace ddu::cuda
