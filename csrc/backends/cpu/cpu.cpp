// SPDX-License-Identifier: MIT
// The CPU device: memory and threads. What is computed is in kernels.h.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../backend.h"
#include "kernels.h"

namespace ddu {

namespace {

using at::Tensor;

// NOTE [ CPU tasks ]
// Every element of a result is the sum of its terms in an order that depends on the sizes alone, so the number of
// threads does not change a bit:
// - columns: an element has one term;
// - image: a task adds to a plane of its own, in the order of the positions. Where there are too few planes to keep the
//   threads busy, the positions are cut into bands with a plane each, which are added in the order of the bands;
// - map: the same task leaves the sums over the channels of its plane, which are added in the order of the planes.
//   So unfold_backward reads grad_output once.
constexpr int64_t kEnoughTasks = 16;
constexpr int64_t kMaxBands = 4;

// Fewer entries of columns than this are not worth another thread.
constexpr int64_t kGrain = 16384;

// Asks for large pages for memory that is about to be written for the first time, as NumPy does for its arrays: where
// the kernel leaves the choice to the program, page faults of 4 KiB would take longer than the work itself.
void advise_large_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kWorthwhile = size_t(4) << 20;
  constexpr size_t kPage = 4096;
  if (tensor.nbytes() >= kWorthwhile) {
    const auto begin = (reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
    const auto end = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr()) + tensor.nbytes();
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: it may be declined
  }
#endif
}

// work: entries of columns, or what takes as long, in each of the tasks.
template <class F>
void parallel_tasks(int64_t tasks, int64_t work, const F& f) {
  at::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)), f);
}

int64_t bands_of(const UnfoldParams& p, int64_t planes) {
  const int64_t tiles = cpu::ceil_div(positions_of(p), 8 * cpu::kTile);
  return std::clamp<int64_t>(std::min(kEnoughTasks / planes, tiles), 1, kMaxBands);
}

// Planes of a task, for which positions are located once: as many as the cache holds together, where there are tasks
// enough for many threads. `parts`: of the positions. `least` is what is worth it in any case.
int64_t planes_together(const UnfoldParams& p, int64_t parts, int64_t least, int64_t most) {
  constexpr int64_t kCached = int64_t(1) << 16;  // elements
  const auto layout = cpu::layout(p);
  const int64_t enough = p.batch * p.groups * layout.planes * parts / kEnoughTasks;
  return std::min(std::max(least, std::min({most, kCached / layout.plane, enough})), layout.planes);
}

// [B, channels, *axes]
template <class S>
cpu::Strided<const S*> strided(const Tensor& tensor) {
  cpu::Strided<const S*> view = {tensor.const_data_ptr<S>(), tensor.stride(0), tensor.stride(1), {}};
  const int64_t axes = tensor.dim() - 2;
  for (int64_t a = 0; a < axes; ++a) {
    view.axis[kMaxAxes - axes + a] = tensor.stride(2 + a);
  }
  return view;
}

// One call, for one type.
template <class scalar_t>
struct Call {
  using T = at::opmath_type<scalar_t>;
  static constexpr auto kType = c10::CppTypeToScalarType<T>::value;

  Call(const SymParams& params, const Tensor& positions)
      : p(concrete(params)),
        layout(cpu::layout(p)),
        kernels(cpu::kernels<scalar_t, T>()),
        planes(p.batch * p.groups * layout.planes) {
    if (positions.scalar_type() == kType) {
      located.computed = strided<T>(positions);
    } else {
      located.stored = strided<scalar_t>(positions);
    }
  }

  Tensor pack(const Tensor& image) const {
    auto result = at::empty({planes, layout.plane}, kType);
    advise_large_pages(result);
    const auto source = strided<scalar_t>(image);
    auto* const target = result.template mutable_data_ptr<T>();
    parallel_tasks(planes * layout.rows, layout.plane / layout.rows, [&](int64_t begin, int64_t end) {
      kernels.pack(p, source, target, begin, end);
    });
    return result;
  }

  void sample(const Tensor& input, Tensor& columns) const {
    const Tensor packed = pack(input);
    advise_large_pages(columns);
    const auto* const source = packed.template const_data_ptr<T>();
    auto* const target = columns.mutable_data_ptr<scalar_t>();
    const int64_t tiles = cpu::ceil_div(positions_of(p), cpu::kTile);
    const int64_t together = planes_together(p, tiles, 4, 16);
    const int64_t tasks = cpu::tasks_of(p, together, tiles);
    parallel_tasks(tasks, columns.numel() / tasks, [&](int64_t begin, int64_t end) {
      kernels.sample(p, together, source, located, target, begin, end);
    });
  }

  // Adds term `splat` of the columns into `image`, and their products with the `count` terms `dot` of `input` into
  // `result`, [B, G, positions_per_group, count, *out]; either may be null.
  void reduce(
      const Tensor& columns,
      const Term* splat,
      Tensor* image,
      const Tensor* input,
      const Term* dot,
      int64_t count,
      Tensor* result) const {
    const int64_t bands = bands_of(p, planes);
    const int64_t together = planes_together(p, bands, 1, 4);
    const Tensor image_planes = image == nullptr ? Tensor() : at::empty({bands * planes, layout.plane}, kType);
    if (image != nullptr) {
      advise_large_pages(image_planes);
      image_planes.zero_();
    }
    const Tensor input_planes = input == nullptr ? Tensor() : pack(*input);
    // The only sum is the result, if it has the type.
    const bool direct = result != nullptr && layout.planes == 1 && result->scalar_type() == kType;
    const int64_t sums_size = p.batch * p.groups * positions_per_group(p) * count * positions_of(p);
    const Tensor sums = direct ? result->view({1, -1}) : at::empty({layout.planes, sums_size}, kType);
    auto* const sum_data = sums.template mutable_data_ptr<T>();
    const cpu::Reduction<scalar_t, T> reduction = {
        strided<scalar_t>(columns),
        located,
        together,
        bands,
        splat,
        image == nullptr ? nullptr : image_planes.template mutable_data_ptr<T>(),
        dot,
        count,
        input == nullptr ? nullptr : input_planes.template const_data_ptr<T>(),
        sum_data};
    const int64_t tasks = cpu::tasks_of(p, together, bands);
    parallel_tasks(
        tasks, columns.numel() / tasks, [&](int64_t begin, int64_t end) { kernels.reduce(p, reduction, begin, end); });
    const int64_t size = p.axis[kMaxAxes - 1].size;
    if (image != nullptr && image->numel() > 0) {
      auto* const target = image->mutable_data_ptr<scalar_t>();
      parallel_tasks(planes * (pixels_of(p) / size), size * layout.lanes, [&](int64_t begin, int64_t end) {
        kernels.unpack(p, reduction.image, bands, target, begin, end);
      });
    }
    if (result != nullptr && !direct) {
      at::parallel_for(0, sums.size(1), kGrain, [&](int64_t begin, int64_t end) {
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
  const int64_t planes;  // of all groups and batch items
  cpu::PositionsView<scalar_t, T> located = {};
};

struct Cpu {
  static constexpr bool kMakesResults = false;

  static void sample(const SymParams& params, const Tensor& input, const Tensor& positions, Tensor& columns) {
    dispatch(params, input, positions, {&columns}, [&](const auto& call) { call.sample(input, columns); });
  }

  static void splat(const SymParams& params, const Tensor& columns, const Tensor& positions, Tensor& image) {
    dispatch(params, columns, positions, {&image}, [&](const auto& call) {
      call.reduce(columns, &params.term, &image, nullptr, nullptr, 0, nullptr);
    });
  }

  static void dot(
      const SymParams& params, const Tensor& columns, const Tensor& input, const Tensor& positions, Tensor& result) {
    dispatch(params, columns, positions, {&result}, [&](const auto& call) {
      call.reduce(columns, nullptr, nullptr, &input, &params.term, 1, &result);
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
    dispatch(params, grad_output, positions, {&grad_input, &grad_positions}, [&](const auto& call) {
      call.reduce(grad_output, &params.term, &grad_input, &input, terms.data(), params.parameters, &grad_positions);
    });
  }

 private:
  // f(call) for the type of `like`. Without a batch or channels, every output is empty or a sum of nothing.
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
