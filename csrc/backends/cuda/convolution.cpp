// SPDX-License-Identifier: MIT
// The fused convolution on CUDA: the problems it takes, its layouts and workspaces.

#include "convolution.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <vector>

#include "../../convolution/fused.h"
#include "../../math/positions.h"
#include "launches.h"
#include "views.h"

namespace ddu::convolution {

namespace {

using at::Tensor;
using cuda::FusedProblem;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }

// ---- which problems it takes

// The number of channels that share positions, mask and the weight's rows; 0 if the groups don't nest.
int64_t run_of(const Problem& problem) {
  const auto& p = problem.window;
  std::array<int64_t, 3> channels = {
      p.channels / problem.groups, p.channels / p.groups, p.channels / std::max<int64_t>(problem.mask_groups, 1)};
  std::sort(channels.begin(), channels.end());
  const bool nested = channels[1] % channels[0] == 0 && channels[2] % channels[1] == 0;
  return nested ? channels[0] : 0;
}

// What the kernels count in an int: pixels, packets and steps.
bool fits_int(const Problem& problem) {
  constexpr int64_t kLimit = int64_t(1) << 28;
  const auto& p = problem.window;
  const auto fits = [](const Axis<int64_t>& axis) {
    return axis.size < kLimit && axis.padding < kLimit && axis.dilation * (axis.kernel - 1) < kLimit &&
        axis.out_size * axis.stride < kLimit;
  };
  const auto bounded = [](std::initializer_list<int64_t> factors, int64_t limit) {
    double product = 1;
    for (const auto factor : factors) {
      product *= static_cast<double>(factor);
    }
    return product < static_cast<double>(limit);
  };
  return std::all_of(p.axis, p.axis + kMaxAxes, fits) && bounded({pixels_of(p), p.channels}, 2 * kLimit) &&
      positions_of(p) < kLimit && taps_of(p) < (1 << 16) && problem.out_channels < kLimit && p.batch < (1 << 16) &&
      bounded({p.channels, taps_of(p), problem.out_channels / problem.groups}, 4 * kLimit);
}

bool has_tensor_cores() {
  int device = 0;
  int major = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 8;
}

// Follows the settings of torch's own convolution.
bool is_exact(const Tensor& input) {
  return input.scalar_type() == at::kFloat && !at::globalContext().allowTF32CuDNN(at::Float32Op::CONV);
}

// With runs of one packet and few outputs, most of the product is idle; this includes depthwise convolutions.
bool is_narrow(const Problem& problem, c10::ScalarType type) {
  return run_of(problem) < 2 * cuda::packet_of(type) || problem.out_channels / problem.groups < 8;
}

// The fraction of the channels multiplied at a time that a run fills.
double fill_of(const Problem& problem, c10::ScalarType type) {
  const int64_t depth = 8 * cuda::packet_of(type);
  const auto run = run_of(problem);
  return static_cast<double>(run) / static_cast<double>(round_up(run, depth));
}

// Whether the kernel is faster than columns. Columns are sampled once, whereas the kernel samples once per tile of
// outputs. But with a mask, columns are written, read and written again. The limits here and in the backward are where
// `python -m benchmarks.convolution` measured the two about equal; close cases go without columns, to save memory.
bool pays(const Problem& problem, c10::ScalarType type, bool exact) {
  const double most_tiles = exact && problem.mask_groups == 0 ? 2 : 16;
  const auto outputs = problem.out_channels / problem.groups;
  const auto tiles = static_cast<double>(ceil_div(outputs, cuda::outputs_of_tile(exact)));
  return !is_narrow(problem, type) && tiles <= std::max(most_tiles * fill_of(problem, type), 1.0);
}

// The same for the backward, which computes the columns' gradient twice: for the input, and for positions and mask.
bool backward_pays(const Problem& problem, c10::ScalarType type) {
  constexpr int64_t kFewOutputs = 64;
  constexpr int64_t kFewPositions = 1024;  // up to here columns cost more in launches than in work
  const auto& p = problem.window;
  const auto outputs = problem.out_channels / problem.groups;
  if (is_narrow(problem, type)) {
    return false;
  }
  if (static_cast<double>(outputs) <= kFewOutputs * fill_of(problem, type)) {
    return true;
  }
  if (p.batch * positions_of(p) <= kFewPositions || p.axis[kMaxAxes - 1].stride > 1) {
    return outputs <= 2 * kFewOutputs || type != at::kFloat;
  }
  return type != at::kFloat && problem.mask_groups > 0;
}

// Whether a single image's columns are so large that dividing the batch doesn't help: then memory matters more than
// time.
bool has_large_columns(const Problem& problem, c10::ScalarType type) {
  constexpr double kLarge = 1 << 28;  // bytes
  const auto& p = problem.window;
  const auto bytes = static_cast<double>(p.channels) * static_cast<double>(taps_of(p)) *
      static_cast<double>(positions_of(p)) * static_cast<double>(c10::elementSize(type));
  return !is_narrow(problem, type) && bytes > kLarge;
}

// Whether the kernels can compute the problem at all.
bool possible(const Problem& problem, c10::ScalarType type) {
  const auto run = run_of(problem);
  return type != at::kDouble && run > 0 && run % cuda::packet_of(type) == 0 && fits_int(problem) && has_tensor_cores();
}

bool takes(const Problem& problem, const Arguments& a) {
  const c10::cuda::CUDAGuard guard(a.input.device());
  const auto type = a.input.scalar_type();
  return possible(problem, type) &&
      (cuda::forced.fast || pays(problem, type, is_exact(a.input)) || has_large_columns(problem, type));
}

bool takes_backward(const Problem& problem, const Tensor&, const Arguments& a, const OutputMask& needs) {
  const c10::cuda::CUDAGuard guard(a.input.device());
  const auto type = a.input.scalar_type();
  // Additions to the input's gradient happen in any order.
  const bool ordered = !needs[kInput] || !at::globalContext().deterministicAlgorithms();
  const bool whole = problem.groups == 1 || problem.out_channels / problem.groups % cuda::packet_of(type) == 0;
  return ordered && whole && possible(problem, type) &&
      (cuda::forced.fast || backward_pays(problem, type) || has_large_columns(problem, type));
}

// ---- layouts

bool is_aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// Whether every row of channels, the last dimension, consists of whole, aligned packets.
bool has_packets(const Tensor& tensor) {
  const auto packet = cuda::packet_of(tensor.scalar_type());
  bool whole = is_aligned(tensor) && tensor.stride(-1) == 1;
  for (int64_t d = 0; d < tensor.dim() - 1; ++d) {
    whole = whole && (tensor.size(d) == 1 || tensor.stride(d) % packet == 0);
  }
  return whole;
}

// [B, C, *size] as [B, L, C], copied unless it already has that layout.
Tensor channels_last(const Tensor& tensor, cudaStream_t stream) {
  const auto flat = tensor.flatten(2);
  const auto view = flat.transpose(1, 2);
  if (view.is_contiguous() && is_aligned(view)) {
    return view;
  }
  auto result = at::empty(view.sizes(), view.options());
  if (flat.stride(2) == 1 || flat.size(2) == 1) {
    cuda::launch_channels_last(
        tensor.scalar_type(), flat.const_data_ptr(), flat.stride(0), flat.stride(1), result.mutable_data_ptr(),
        flat.size(0), flat.size(1), flat.size(2), stream);
  } else {
    result.copy_(view);
  }
  return result;
}

// Whether results should be channels-last.
bool is_channels_last(const Tensor& like) { return like.suggest_memory_format() != at::MemoryFormat::Contiguous; }

Tensor empty_like(const Tensor& like, at::IntArrayRef sizes) {
  return at::empty(sizes, like.options().memory_format(like.suggest_memory_format()));
}

// The weight as [(B,) O, C / groups, taps].
Tensor flat_weight(const Problem& problem, const Tensor& weight) {
  return weight.flatten(problem.weight_per_image ? 3 : 2);
}

// [(B,) taps, rows, depth] for the kernels.
cuda::WeightView view_weight(const Tensor& matrices, bool per_image) {
  return {matrices.const_data_ptr(), per_image ? matrices.stride(0) : 0, matrices.stride(-3), matrices.stride(-2)};
}

struct Prepared {
  Tensor input, mask;  // `problem` points to these
  FusedProblem problem;
};

Prepared prepare(const Problem& problem, const Arguments& a, cudaStream_t stream) {
  const auto& p = problem.window;
  Prepared r = {};
  r.input = channels_last(a.input, stream);
  auto& f = r.problem;
  f.p = p;
  f.groups = problem.groups;
  f.outputs = problem.out_channels;
  f.mask_groups = std::max<int64_t>(problem.mask_groups, 1);
  f.run = run_of(problem);
  f.exact = is_exact(a.input);
  f.input = r.input.const_data_ptr();
  f.positions = cuda::view_positions(a.positions);
  if (a.mask.defined()) {
    r.mask = a.mask.flatten(2);
    if (r.mask.stride(2) != 1) {
      r.mask = r.mask.contiguous();
    }
    f.mask = r.mask.const_data_ptr();
    f.mask_batch = r.mask.stride(0);
    f.mask_channel = r.mask.stride(1);
  }
  return r;
}

// ---- forward and backward

Tensor forward(const Problem& problem, const Arguments& a) {
  const c10::cuda::CUDAGuard guard(a.input.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto r = prepare(problem, a, stream);
  // A tap's channels adjacent for each output, as in a channels-last weight.
  auto weight = flat_weight(problem, a.weight).transpose(-1, -2);
  weight = has_packets(weight) ? weight : weight.clone(at::MemoryFormat::Contiguous);
  weight = weight.transpose(-2, -3);
  const auto bias = a.bias.defined() ? a.bias.contiguous() : Tensor();
  std::vector<int64_t> sizes = {problem.window.batch, problem.out_channels};
  sizes.insert(sizes.end(), a.positions.sizes().begin() + 2, a.positions.sizes().end());
  auto output = empty_like(a.input, sizes);
  cuda::launch_convolution(
      r.problem, a.input.scalar_type(), view_weight(weight, problem.weight_per_image),
      bias.defined() ? bias.const_data_ptr() : nullptr, bias.defined() && bias.dim() == 2 ? bias.stride(0) : 0,
      output.mutable_data_ptr(), is_channels_last(a.input), stream);
  return output;
}

// The gradients with respect to the input, the positions and the mask. Gradient and weight have whole packets of
// outputs.
void add_data_gradients(
    const Problem& problem,
    const FusedProblem& fused,
    const Tensor& grad,
    const Tensor& flat_weight,
    const Arguments& a,
    const OutputMask& needs,
    cudaStream_t stream,
    Gradients& result) {
  const auto& p = problem.window;
  const auto type = a.input.scalar_type();
  // [(B,) groups, O / groups, C / groups, taps] to [(B,) taps, C, O / groups]
  auto matrices = flat_weight.unflatten(-3, {problem.groups, fused.outputs / problem.groups});
  const auto d = matrices.dim();
  matrices = matrices.movedim({d - 1, d - 4, d - 2, d - 3}, {d - 4, d - 3, d - 2, d - 1})
                 .clone(at::MemoryFormat::Contiguous)
                 .flatten(d - 3, d - 2);
  const auto sums = a.input.options().dtype(at::kFloat);
  Tensor grad_input;
  Tensor grad_positions;
  Tensor grad_mask;
  if (needs[kInput]) {
    grad_input = at::zeros({p.batch, pixels_of(p), p.channels}, sums);
  }
  const bool of_windows = !per_tap(p.source) && needs[kPositions];
  const auto splits = of_windows ? cuda::tap_splits(fused) : 1;
  if (needs[kPositions]) {
    grad_positions = at::empty({splits, p.batch, a.positions.size(1), positions_of(p)}, sums);
  }
  if (needs[kMask]) {
    grad_mask = at::empty({p.batch, a.mask.size(1), positions_of(p)}, sums);
  }
  const auto data = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; };
  const auto view = view_weight(matrices, problem.weight_per_image);
  if (needs[kInput]) {
    cuda::launch_convolution_input(fused, type, view, grad.const_data_ptr(), data(grad_input), stream);
  }
  if (needs[kPositions] || needs[kMask]) {
    cuda::launch_convolution_positions(
        fused, type, view, grad.const_data_ptr(), data(grad_positions), data(grad_mask), stream);
  }
  if (needs[kInput]) {
    auto& to = result[kInput];
    to = empty_like(a.input, a.input.sizes());
    if (is_channels_last(a.input)) {
      to.flatten(2).transpose(1, 2).copy_(grad_input);
    } else {
      cuda::launch_channels_first(
          type, grad_input.const_data_ptr<float>(), to.mutable_data_ptr(), p.batch, p.channels, pixels_of(p), stream);
    }
  }
  if (needs[kPositions]) {
    const auto sum = splits == 1 ? grad_positions.select(0, 0) : grad_positions.sum(0);
    result[kPositions] = sum.to(a.positions.scalar_type()).view(a.positions.sizes());
  }
  if (needs[kMask]) {
    result[kMask] = grad_mask.to(type).view(a.mask.sizes());
  }
}

Tensor weight_gradient(
    const Problem& problem, const FusedProblem& fused, const Tensor& grad, const Arguments& a, cudaStream_t stream) {
  const auto& p = problem.window;
  const auto type = a.input.scalar_type();
  const auto splits = cuda::position_splits(fused, type, problem.weight_per_image);
  const auto partial =
      at::empty({splits, taps_of(p), fused.outputs, p.channels / problem.groups}, a.input.options().dtype(at::kFloat));
  cuda::launch_convolution_weight(
      fused, type, grad.const_data_ptr(), splits, partial.mutable_data_ptr<float>(), stream);
  const auto sum = problem.weight_per_image ? partial.unflatten(0, {p.batch, splits / p.batch}).sum(1) : partial.sum(0);
  auto result = at::empty(a.weight.sizes(), a.weight.options());
  flat_weight(problem, result).copy_(sum.narrow(-2, 0, problem.out_channels).movedim(-3, -1));
  return result;
}

Gradients backward(const Problem& problem, const Tensor& grad_output, const Arguments& a, const OutputMask& needs) {
  const c10::cuda::CUDAGuard guard(a.input.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  auto r = prepare(problem, a, stream);
  auto grad = channels_last(grad_output, stream);
  auto weight = flat_weight(problem, a.weight);
  // With several groups, their outputs are whole packets: see takes_backward.
  const auto missing = round_up(problem.out_channels, cuda::packet_of(a.input.scalar_type())) - problem.out_channels;
  if (missing > 0) {
    grad = at::constant_pad_nd(grad, {0, missing});
    weight = at::constant_pad_nd(weight, {0, 0, 0, 0, 0, missing});
    r.problem.outputs += missing;
  }
  Gradients result(kGradients);
  if (needs[kInput] || needs[kPositions] || needs[kMask]) {
    add_data_gradients(problem, r.problem, grad, weight, a, needs, stream, result);
  }
  if (needs[kWeight]) {
    result[kWeight] = weight_gradient(problem, r.problem, grad, a, stream);
  }
  return result;
}

const Registered registered(c10::DeviceType::CUDA, {&takes, &forward, &takes_backward, &backward});

}  // namespace

}  // namespace ddu::convolution
