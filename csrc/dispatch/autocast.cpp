// SPDX-License-Identifier: MIT
// Autocast: images and columns are cast to the autocast type, like a convolution's. Dilation maps, offsets and affine
// maps are cast up to float32, so that positions keep their precision. float64 is left alone. Only the operators that
// models call are registered: a backward computes in the types of its forward (see WithoutAutocast).

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace ddu {

namespace {

template <at::DeviceType device>
void autocast(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto& arguments = op.schema().arguments();
  auto value = stack->end() - static_cast<std::ptrdiff_t>(arguments.size());
  for (const auto& argument : arguments) {
    if (value->isTensor()) {
      const bool positions = argument.name() == "dilation_map" || argument.name() == "offset" ||
          argument.name() == "theta" || argument.name() == "positions";
      const auto type = positions ? at::kFloat : at::autocast::get_autocast_dtype(device);
      *value = at::autocast::cached_cast(type, value->toTensor(), device);
    }
    ++value;
  }
  op.callBoxed(stack);
}

template <at::DeviceType device>
void register_autocast(torch::Library& m) {
  for (const auto* name :
       {"unfold", "fold", "convolution", "aggregate", "correlate", "max_pool", "dcls_sparse_sum", "deform_unfold1d",
        "deform_unfold2d", "deform_unfold3d", "affine_unfold1d", "affine_unfold2d", "affine_unfold3d"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&autocast<device>>());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, AutocastCPU, m) { register_autocast<at::kCPU>(m); }

TORCH_LIBRARY_IMPL(ddu, AutocastCUDA, m) { register_autocast<at::kCUDA>(m); }

}  // namespace ddu
