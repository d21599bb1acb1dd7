// SPDX-License-Identifier: MIT
// The sums of windows on CUDA: the calls that the kernel takes, and their layouts.

#include "../../sums/sums.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../../math/positions.h"
#include "pool.h"
#include "sums.h"
#include "views.h"

// NOTE [ CUDA sums ]
// The kernel needs a pixel's channels to be adjacent, as in a channels-last tensor. Such tensors are used in place;
// other layouts are copied before or afterwards. What the kernel cannot do goes through columns (formulas.cpp):
// float64, groups whose channels aren't whole packets, the gradient with respect to the weight and, where determinism
// is asked for, the gradient with respect to the input. Pooling has kernels of its own, for any layout and type.

namespace ddu {

namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using sums::Call;
using sums::Tensors;
using sums::Wanted;

// [B, channels, n] -> [B, n, channels], contiguous, and aligned for reading packets of 16 bytes.
Tensor channels_inside(const Tensor& tensor) {
  const auto result = tensor.transpose(1, 2).contiguous();
  return reinterpret_cast<uintptr_t>(result.const_data_ptr()) % 16 == 0 ? result : result.clone();
}

// [B, C, *size] -> [B, pixels, C]; a channels-last tensor isn't copied.
Tensor pixel_major(const Tensor& tensor) { return channels_inside(tensor.flatten(2)); }

// Gives all output positions a single stride, copying if necessary.
Tensor over_positions(const Tensor& tensor) { return tensor.flatten(2); }

cuda::GridView view(const Tensor& flat) {
  return {flat.const_data_ptr(), flat.stride(0), flat.stride(1), flat.stride(2)};
}

bool can(const Call& call, const UnfoldParams& p, c10::ScalarType type) {
  const auto& wanted = call.wanted;
  return !call.x[sums::kTaps].defined() && !wanted[sums::kWeight] &&
      !(wanted[sums::kInput] && at::globalContext().deterministicAlgorithms()) &&
      cuda::sums_possible(p, type, call.mask_groups, wanted[sums::kMask]);
}

void contract(const Call& call, const UnfoldParams& p, Tensors& results) {
  const auto& x = call.x;
  const auto& wanted = call.wanted;
  const auto& image = x[sums::kInput].defined() ? x[sums::kInput] : x[sums::kQuery];
  const auto type = image.scalar_type();
  cuda::SumsCall c = {};
  c.mask_groups = call.mask_groups;

  // The arguments.
  const bool samples = wanted[sums::kQuery] || wanted[sums::kMask] || wanted[sums::kPositions];
  const bool queries = wanted[sums::kInput] || wanted[sums::kMask] || wanted[sums::kPositions];
  const Tensor input = samples ? pixel_major(x[sums::kInput]) : Tensor();
  const Tensor query = queries ? pixel_major(x[sums::kQuery]) : Tensor();
  c.input = samples ? input.const_data_ptr() : nullptr;
  c.query = queries ? query.const_data_ptr() : nullptr;
  Tensor mask;
  if (x[sums::kMask].defined()) {
    mask = over_positions(x[sums::kMask]);
    c.mask = view(mask);
  }
  Tensor weight;
  if (x[sums::kWeight].defined()) {
    const bool shared = x[sums::kWeight].stride(0) == 0;
    weight = channels_inside(shared ? x[sums::kWeight].narrow(0, 0, 1) : x[sums::kWeight]);
    c.weight = weight.const_data_ptr();
    c.weight_batch = shared ? 0 : weight.stride(0);
  }
  c.positions = cuda::view_positions(x[sums::kPositions]);

  // The results, in the layout of the kernel.
  const auto laid_out = [&](const Tensor& result) {
    const auto flat = result.flatten(2).transpose(1, 2);
    return flat.is_contiguous() && flat.data_ptr() == result.data_ptr();
  };
  Tensor by_query;
  if (wanted[sums::kQuery]) {
    const auto& result = results[sums::kQuery];
    by_query = laid_out(result) ? result.flatten(2).transpose(1, 2)
                                : at::empty({p.batch, positions_of(p), p.channels}, result.options());
    c.by_query = by_query.mutable_data_ptr();
  }
  if (wanted[sums::kMask]) {
    c.by_mask = view(results[sums::kMask].flatten(2));
  }
  Tensor by_input;
  if (wanted[sums::kInput]) {
    const auto& result = results[sums::kInput];
    const bool direct = type == at::kFloat && laid_out(result);
    by_input = direct ? result.flatten(2).transpose(1, 2)
                      : at::empty({p.batch, pixels_of(p), p.channels}, result.options().dtype(at::kFloat));
    by_input.zero_();
    c.by_input = by_input.mutable_data_ptr<float>();
  }
  if (wanted[sums::kPositions]) {
    c.by_positions = results[sums::kPositions].mutable_data_ptr();
    c.dots = static_cast<int>(bases_of(p.source, p.axes, p.parameters));
    c.multiples = static_cast<int>(multiples_of(p.source, p.axes));
    for (int b = 0; b < c.dots; ++b) {
      c.terms[b] = first_term(p, b);
    }
  }
  cuda::launch_sums(p, type, c, c10::cuda::getCurrentCUDAStream());

  for (const auto& [slot, made] : {std::pair(sums::kQuery, by_query), std::pair(sums::kInput, by_input)}) {
    if (made.defined() && made.data_ptr() != results[slot].data_ptr()) {
      results[slot].copy_(made.transpose(1, 2).view(results[slot].sizes()));
    }
  }
}

// Whether a pixel's channels are adjacent.
bool has_channels_inside(const Tensor& image) { return image.stride(1) == 1 && image.size(1) > 1; }

// Whether the call asks for the gradients of a pooling, with respect to the input and the positions.
bool is_pooling(const Call& call, const UnfoldParams& p) {
  const auto& wanted = call.wanted;
  return taps_of(p) < int64_t(1) << 31 && call.x[sums::kTaps].defined() && !call.x[sums::kMask].defined() &&
      !call.x[sums::kWeight].defined() && !wanted[sums::kQuery] && !at::globalContext().deterministicAlgorithms();
}

void pool_backward(const Call& call, const UnfoldParams& p, Tensors& results) {
  const auto& x = call.x;
  const auto type = x[sums::kQuery].scalar_type();
  const auto computed = x[sums::kQuery].options().dtype(type == at::kDouble ? at::kDouble : at::kFloat);
  cuda::PoolGradients c = {};
  const auto grad = over_positions(x[sums::kQuery]);
  const auto taps = over_positions(x[sums::kTaps]);
  c.grad = view(grad);
  c.taps = view(taps);
  c.positions = cuda::view_positions(x[sums::kPositions]);
  c.channels_inside = has_channels_inside(grad);
  bool wide = cuda::is_wide(x[sums::kQuery]);
  Tensor by_input;
  if (call.wanted[sums::kInput]) {
    const auto& result = results[sums::kInput];
    by_input = at::zeros(result.sizes(), computed.memory_format(sums::format_of(result)));
    c.by_input = cuda::view_image(by_input);
    wide = wide || cuda::is_wide(by_input);
  }
  Tensor by_positions;
  if (call.wanted[sums::kPositions]) {
    c.input = cuda::view_image(x[sums::kInput]);
    wide = wide || cuda::is_wide(x[sums::kInput]);
    c.dots = static_cast<int>(bases_of(p.source, p.axes, p.parameters));
    c.multiples = static_cast<int>(multiples_of(p.source, p.axes));
    for (int b = 0; b < c.dots; ++b) {
      c.terms[b] = first_term(p, b);
    }
    by_positions = at::zeros(results[sums::kPositions].sizes(), computed);
    c.by_positions = by_positions.mutable_data_ptr();
  }
  cuda::launch_pool_backward(p, type, wide, c, c10::cuda::getCurrentCUDAStream());
  for (const auto& [slot, made] : {std::pair(sums::kInput, by_input), std::pair(sums::kPositions, by_positions)}) {
    if (made.defined()) {
      results[slot].copy_(made);
    }
  }
}

std::tuple<Tensor, Tensor> max_pool_cuda(const Tensor& input, const Tensor& positions, const Options& options) {
  const auto params = sums::check_max_pool("max_pool", input, positions, options);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto p = concrete(params);
  TORCH_CHECK(
      taps_of(p) < int64_t(1) << 31, "max_pool(): expected a kernel of at most 2^31 - 1 taps, but got ", taps_of(p));
  auto [values, taps] = sums::allocate_max_pool(params, input);
  if (values.numel() == 0) {
    return {values, taps};
  }
  const auto flat = values.flatten(2);
  cuda::PoolCall c = {};
  c.input = cuda::view_image(input);
  c.positions = cuda::view_positions(positions);
  c.ignore = options.padding_mode == sums::kIgnore;
  c.channels_inside = has_channels_inside(flat);
  c.values = values.mutable_data_ptr();
  c.taps = taps.mutable_data_ptr<int64_t>();
  c.grid = view(flat);
  const bool wide = cuda::is_wide(input) || cuda::is_wide(values);
  cuda::launch_pool(p, input.scalar_type(), wide, c, c10::cuda::getCurrentCUDAStream());
  return {values, taps};
}

Tensors contract_cuda(const char* op, const Tensors& x, const sums::Options& options, SymIntArrayRef image_size) {
  const auto call = sums::check(op, x, options, image_size);
  const auto& image = x[sums::kInput].defined() ? x[sums::kInput] : x[sums::kQuery];
  const c10::cuda::CUDAGuard guard(image.device());
  const auto p = concrete(call.params);
  const bool empty = p.batch == 0 || p.channels == 0 || pixels_of(p) == 0;
  const bool pooling = is_pooling(call, p);
  if (empty || !(pooling || can(call, p, image.scalar_type()))) {
    return sums::by_columns(x, options, image_size, options.wanted);
  }
  auto results = sums::allocate(call);
  pooling ? pool_backward(call, p, results) : contract(call, p, results);
  return results;
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CUDA, m) {
  sums::register_contractions<&contract_cuda>(m);
  m.impl("max_pool", TORCH_FN(sums::max_pool_schema<&max_pool_cuda>));
}

}  // namespace ddu
