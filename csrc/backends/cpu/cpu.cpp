// SPDX-License-Identifier: MIT
// The CPU device: memory and threads. kernels.h describes the computation.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include "../backend.h"
#include "kernels.h"
#include "tasks.h"

namespace ddu {

namespace {

using at::Tensor;

// A call, for one type.
template <class scalar_t>
struct Call {
  using T = at::opmath_type<scalar_t>;
  static constexpr auto kType = c10::CppTypeToScalarType<T>::value;

  Call(const SymParams& params, const Tensor& positions)
      : p(concrete(params)),
        layout(cpu::layout(p)),
        kernels(cpu::kernels<scalar_t, T>()),
        planes(p.batch * p.groups * layout.planes),
        located(cpu::view_positions<scalar_t, T>(positions)) {}

  Tensor pack(const Tensor& image) const { return cpu::packed<scalar_t, T>(p, image); }

  void sample(const Tensor& input, Tensor& columns) const {
    const Tensor packed = pack(input);
    cpu::advise_large_pages(columns);
    const auto* const source = packed.template const_data_ptr<T>();
    auto* const target = columns.mutable_data_ptr<scalar_t>();
    const int64_t tiles = cpu::ceil_div(positions_of(p), cpu::kTile);
    const int64_t together = cpu::planes_together(p, tiles, 4, 16);
    const int64_t tasks = cpu::tasks_of(p, together, tiles);
    cpu::parallel_tasks(tasks, columns.numel() / tasks, [&](int64_t begin, int64_t end) {
      kernels.sample(p, together, source, located, target, begin, end);
    });
  }

  // Adds term `splat` of the columns to `image`, and writes their products with the `count` terms `dot` of `input` to
  // `result`, [B, G, positions_per_group, count, multiples, *out]. Either output may be null.
  void reduce(
      const Tensor& columns,
      const Term* splat,
      Tensor* image,
      const Tensor* input,
      const Term* dot,
      int64_t count,
      int64_t multiples,
      Tensor* result) const {
    const int64_t bands = cpu::bands_of(p, planes);
    const int64_t together = cpu::planes_together(p, bands, 1, 4);
    const Tensor image_planes = image == nullptr ? Tensor() : at::empty({bands * planes, layout.plane}, kType);
    if (image != nullptr) {
      cpu::advise_large_pages(image_planes);
      image_planes.zero_();
    }
    const Tensor input_planes = input == nullptr ? Tensor() : pack(*input);
    // With one plane the sums are the result itself, if it has their type.
    const bool direct = result != nullptr && layout.planes == 1 && result->scalar_type() == kType;
    const int64_t sums_size = p.batch * p.groups * positions_per_group(p) * count * multiples * positions_of(p);
    const Tensor sums = direct ? result->view({1, -1}) : at::empty({layout.planes, sums_size}, kType);
    auto* const sum_data = sums.template mutable_data_ptr<T>();
    const cpu::Reduction<scalar_t, T> reduction = {
        cpu::strided<scalar_t>(columns),
        located,
        together,
        bands,
        splat,
        image == nullptr ? nullptr : image_planes.template mutable_data_ptr<T>(),
        dot,
        count,
        multiples,
        input == nullptr ? nullptr : input_planes.template const_data_ptr<T>(),
        sum_data};
    const int64_t tasks = cpu::tasks_of(p, together, bands);
    cpu::parallel_tasks(
        tasks, columns.numel() / tasks, [&](int64_t begin, int64_t end) { kernels.reduce(p, reduction, begin, end); });
    const int64_t size = p.axis[kMaxAxes - 1].size;
    if (image != nullptr && image->numel() > 0) {
      auto* const target = image->mutable_data_ptr<scalar_t>();
      cpu::parallel_tasks(planes * (pixels_of(p) / size), size * layout.lanes, [&](int64_t begin, int64_t end) {
        kernels.unpack(p, reduction.image, bands, target, begin, end);
      });
    }
    if (result != nullptr && !direct) {
      at::parallel_for(0, sums.size(1), cpu::kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t plane = 1; plane < layout.planes; ++plane) {
          const auto* const more = sum_data + plane * sums.size(1);
          for (int64_t k = begin; k < end; ++k) {
            sum_data[k] += more[k];
          }
        }
      });
      result->copy_(sums[0].view(result->sizes()));
    }
  }

  const UnfoldParams p;
  const cpu::Layout layout;
  const cpu::Kernels<scalar_t, T>& kernels;
  const int64_t planes;  // over all groups and batch items
  const cpu::PositionsView<scalar_t, T> located;
};

struct Cpu {
  static constexpr bool kMakesResults = false;

  static void sample(const SymParams& params, const Tensor& input, const Tensor& positions, Tensor& columns) {
    dispatch(params, input, positions, {&columns}, [&](const auto& call) { call.sample(input, columns); });
  }

  static void splat(const SymParams& params, const Tensor& columns, const Tensor& positions, Tensor& image) {
    dispatch(params, columns, positions, {&image}, [&](const auto& call) {
      call.reduce(columns, &params.term, &image, nullptr, nullptr, 0, 1, nullptr);
    });
  }

  static void dot(
      const SymParams& params, const Tensor& columns, const Tensor& input, const Tensor& positions, Tensor& result) {
    dispatch(params, columns, positions, {&result}, [&](const auto& call) {
      call.reduce(columns, nullptr, nullptr, &input, &params.term, 1, 1, &result);
    });
  }

  static void sample_backward(
      const SymParams& params,
      const ParameterTerms& terms,
      const Tensor& grad_output,
      const Tensor& input,
      const Tensor& positions,
      Tensor& grad_input,
      Tensor& grad_positions) {
    const auto bases = bases_of(params, terms);
    dispatch(params, grad_output, positions, {&grad_input, &grad_positions}, [&](const auto& call) {
      call.reduce(
          grad_output, &params.term, &grad_input, &input, bases.data(),
          bases_of(params.source, params.axes, params.parameters), multiples_of(params.source, params.axes),
          &grad_positions);
    });
  }

 private:
  // Calls f(call) for the type of `like`. Without a batch or channels, every output is empty or a sum of nothing.
  template <class F>
  static void dispatch(
      const SymParams& params,
      const Tensor& like,
      const Tensor& positions,
      std::initializer_list<Tensor*> outputs,
      const F& f) {
    if (params.batch == 0 || params.channels == 0) {
      for (auto* const output : outputs) {
        output->zero_();
      }
      return;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, like.scalar_type(), "ddu", [&] { f(Call<scalar_t>(params, positions)); });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CPU, m) { register_operators<Cpu>(m); }

}  // namespace ddu
