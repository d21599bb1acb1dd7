// SPDX-License-Identifier: MIT
#include "fused.h"

#include <array>
#include <optional>

namespace ddu::convolution {

namespace {

// The table is local to a function because static objects in other files fill it, in no particular order.
std::optional<Fused>& entry(c10::DeviceType device) {
  static std::array<std::optional<Fused>, c10::COMPILE_TIME_MAX_DEVICE_TYPES> table;
  return table[static_cast<size_t>(device)];
}

}  // namespace

const Fused* fused(c10::DeviceType device) {
  const auto& kernels = entry(device);
  return kernels ? &*kernels : nullptr;
}

Registered::Registered(c10::DeviceType device, const Fused& kernels) { entry(device) = kernels; }

}  // namespace ddu::convolution
