// SPDX-License-Identifier: MIT
// The sums of windows on the CPU: memory and threads. sums_kernels.h describes the computation.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../../sums/sums.h"
#include "../backend.h"
#include "sums_kernels.h"
#include "tasks.h"

// NOTE [ CPU sums ]
// Results over the output positions (or sums over them) are gathered: a task owns a tile of positions and sums over all
// channels, so tasks share nothing. The weight's gradient is a sum over the tiles of an image. It is split into a few
// strips of tiles, whose number depends only on the sizes, and which are added in order. The gradient of the image
// is scattered into planes, as in NOTE [ CPU tasks ].

namespace ddu {

namespace {

using at::Tensor;
using sums::Call;
using sums::Tensors;

constexpr int64_t kMostStrips = 16;  // each holds a sum of the weight's size

template <class scalar_t>
void contract(const Call& call, Tensors& results) {
  using T = at::opmath_type<scalar_t>;
  constexpr auto kType = c10::CppTypeToScalarType<T>::value;
  const auto& [x, params, mask_groups, wanted] = call;
  const auto p = concrete(params);
  const int64_t taps = taps_of(p);
  const int64_t positions = positions_of(p);
  const auto view = [](const Tensor& tensor) {
    return tensor.defined() ? cpu::strided<scalar_t>(tensor) : cpu::Strided<const scalar_t*>{};
  };

  cpu::Sums<scalar_t, T> s = {};
  s.mask_groups = mask_groups;
  s.query = view(x[sums::kQuery]);
  s.mask = view(x[sums::kMask]);
  const Tensor weight = x[sums::kWeight].defined() ? x[sums::kWeight].to(kType) : Tensor();
  s.weight = weight.defined() ? cpu::strided<T>(weight) : cpu::Strided<const T*>{};
  s.taps = x[sums::kTaps].defined() ? cpu::strided<int64_t>(x[sums::kTaps]) : cpu::Strided<const int64_t*>{};
  s.positions = cpu::view_positions<scalar_t, T>(x[sums::kPositions]);

  // Gathered.
  const int64_t tiles = cpu::ceil_div(positions, cpu::kTile);
  s.strips = wanted[sums::kWeight] ? std::min(tiles, kMostStrips) : tiles;
  if (wanted[sums::kQuery]) {
    auto& result = results[sums::kQuery];
    s.by_query = result.template mutable_data_ptr<scalar_t>();
    s.batch = result.stride(0);
    s.channel = result.stride(1);
    s.position = result.stride(-1);
  }
  // A sum to add to: the result itself, if it has the type and, being contiguous, the shape.
  const auto sum = [&](sums::Slot slot, at::IntArrayRef shape, T*& data) {
    if (!wanted[slot]) {
      return Tensor();
    }
    auto& result = results[slot];
    const bool direct = result.scalar_type() == kType && result.is_contiguous() && slot != sums::kWeight;
    const Tensor found = direct ? result.zero_() : at::zeros(shape, kType);
    data = found.template mutable_data_ptr<T>();
    return direct ? Tensor() : found;
  };
  const Tensor by_mask =
      sum(sums::kMask, results[sums::kMask].defined() ? results[sums::kMask].sizes() : at::IntArrayRef(), s.by_mask);
  const Tensor by_weight = sum(sums::kWeight, {p.batch, s.strips, p.channels, taps}, s.by_weight);
  const Tensor by_positions = sum(sums::kPositions, x[sums::kPositions].sizes(), s.by_positions);
  ParameterTerms terms = {};
  if (wanted[sums::kPositions]) {
    s.count = bases_of(p.source, p.axes, p.parameters);
    s.multiples = multiples_of(p.source, p.axes);
    for (int64_t b = 0; b < s.count; ++b) {
      terms[b] = first_term(p, b);
    }
    s.terms = terms.data();
  }
  const auto& kernels = cpu::sums_kernels<scalar_t, T>();
  const int64_t entries = p.batch * p.channels * taps * positions;
  if (wanted[sums::kQuery] || wanted[sums::kMask] || wanted[sums::kWeight] || wanted[sums::kPositions]) {
    const Tensor planes = cpu::packed<scalar_t, T>(p, x[sums::kInput]);
    s.input = planes.template const_data_ptr<T>();
    const int64_t tasks = p.batch * s.strips;
    cpu::parallel_tasks(tasks, entries / tasks, [&](int64_t begin, int64_t end) { kernels.gather(p, s, begin, end); });
  }
  if (by_mask.defined()) {
    results[sums::kMask].copy_(by_mask);
  }
  if (by_weight.defined()) {
    for (int64_t strip = 1; strip < s.strips; ++strip) {
      by_weight.select(1, 0).add_(by_weight.select(1, strip));
    }
    results[sums::kWeight].copy_(by_weight.select(1, 0));
  }
  if (by_positions.defined()) {
    results[sums::kPositions].copy_(by_positions);
  }

  // Scattered.
  if (wanted[sums::kInput] && results[sums::kInput].numel() > 0) {
    auto& result = results[sums::kInput];
    const auto layout = cpu::layout(p);
    const int64_t planes = p.batch * p.groups * layout.planes;
    s.bands = cpu::bands_of(p, planes);
    const Tensor image = at::zeros({s.bands * planes, layout.plane}, kType);
    s.image = image.template mutable_data_ptr<T>();
    cpu::parallel_tasks(planes * s.bands, entries / (planes * s.bands), [&](int64_t begin, int64_t end) {
      kernels.scatter(p, s, begin, end);
    });
    const Tensor target = result.is_contiguous() ? result : at::empty(result.sizes(), result.options());
    auto* const data = target.template mutable_data_ptr<scalar_t>();
    const int64_t size = p.axis[kMaxAxes - 1].size;
    cpu::parallel_tasks(planes * (pixels_of(p) / size), size * layout.lanes, [&](int64_t begin, int64_t end) {
      cpu::kernels<scalar_t, T>().unpack(p, s.image, s.bands, data, begin, end);
    });
    if (!target.is_same(result)) {
      result.copy_(target);
    }
  }
}

struct Cpu {
  static void contract(const Call& call, Tensors& results) {
    const auto& image = call.x[sums::kInput].defined() ? call.x[sums::kInput] : call.x[sums::kQuery];
    if (call.params.batch == 0 || call.params.channels == 0) {  // empty results, or sums of nothing
      for (auto& result : results) {
        if (result.defined()) {
          result.zero_();
        }
      }
      return;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, image.scalar_type(), "ddu", [&] { ddu::contract<scalar_t>(call, results); });
  }

  static void max_pool(
      const SymParams& params,
      bool ignore,
      const Tensor& input,
      const Tensor& positions,
      const Tensor& values,
      const Tensor& taps) {
    if (values.numel() == 0) {
      return;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "ddu", [&] {
      using T = at::opmath_type<scalar_t>;
      const auto p = concrete(params);
      const Tensor planes = cpu::packed<scalar_t, T>(p, input);
      const cpu::Pool<scalar_t, T> pool = {
          cpu::view_positions<scalar_t, T>(positions),
          planes.template const_data_ptr<T>(),
          ignore,
          values.mutable_data_ptr<scalar_t>(),
          taps.mutable_data_ptr<int64_t>(),
          values.stride(0),
          values.stride(1),
          values.stride(-1)};
      const int64_t tasks = cpu::pool_tasks(p);
      cpu::parallel_tasks(tasks, values.numel() * taps_of(p) / tasks, [&](int64_t begin, int64_t end) {
        cpu::sums_kernels<scalar_t, T>().pool(p, pool, begin, end);
      });
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CPU, m) { sums::register_operators<Cpu>(m); }

}  // namespace ddu
