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

#include "../dispatch/backend.h"
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
  const int64_t tiles = cpu::ceil_div(p.h.out_size * p.w.out_size, 8 * cpu::kTile);
  return std::clamp<int64_t>(std::min(kEnoughTasks / planes, tiles), 1, kMaxBands);
}

template <class scalar_t>
cpu::Strided<const scalar_t*> strided(const Tensor& image) {
  return {image.const_data_ptr<scalar_t>(), {image.stride(0), image.stride(1), image.stride(2), image.stride(3)}};
}

// One call, for one type.
template <class scalar_t>
struct Call {
  using T = at::opmath_type<scalar_t>;
  static constexpr auto kType = c10::CppTypeToScalarType<T>::value;

  Call(const SymParams& params, const Tensor& dilation_map)
      : p(concrete(params)),
        layout(cpu::layout(p)),
        kernels(cpu::kernels<scalar_t, T>()),
        planes(p.batch * p.groups * layout.planes),
        positions(p.h.out_size * p.w.out_size),
        rates((dilation_map.scalar_type() == kType ? dilation_map : dilation_map.to(kType)).contiguous()) {}

  Tensor pack(const Tensor& image) const {
    auto result = at::empty({planes, layout.plane}, kType);
    advise_large_pages(result);
    const auto source = strided<scalar_t>(image);
    auto* const target = result.template mutable_data_ptr<T>();
    const int64_t row = padded(p.w.size) * layout.lanes;
    parallel_tasks(planes * padded(p.h.size), row, [&](int64_t begin, int64_t end) {
      kernels.pack(p, source, target, begin, end);
    });
    return result;
  }

  void sample(const Tensor& input, Tensor& columns) const {
    const Tensor packed = pack(input);
    advise_large_pages(columns);
    const auto* const source = packed.template const_data_ptr<T>();
    auto* const target = columns.mutable_data_ptr<scalar_t>();
    const int64_t tasks = cpu::sample_tasks(p);
    parallel_tasks(tasks, columns.numel() / tasks, [&](int64_t begin, int64_t end) {
      kernels.sample(p, source, rates.template const_data_ptr<T>(), target, begin, end);
    });
  }

  // Adds term `splat` of the columns into `image`, and their products with the `count` terms `dot` of `input` into
  // `result`, [B, G, count, H_out, W_out]; either may be null.
  void reduce(
      const Tensor& columns,
      const Term* splat,
      Tensor* image,
      const Tensor* input,
      const Term* dot,
      int64_t count,
      Tensor* result) const {
    const int64_t bands = bands_of(p, planes);
    const Tensor image_planes = image == nullptr ? Tensor() : at::empty({bands * planes, layout.plane}, kType);
    if (image != nullptr) {
      advise_large_pages(image_planes);
      image_planes.zero_();
    }
    const Tensor input_planes = input == nullptr ? Tensor() : pack(*input);
    // The only sum is the result, if it has the type.
    const bool direct = result != nullptr && layout.planes == 1 && result->scalar_type() == kType;
    const Tensor sums =
        direct ? result->view({1, -1}) : at::empty({layout.planes, p.batch * p.groups * count * positions}, kType);
    auto* const sum_data = sums.template mutable_data_ptr<T>();
    const cpu::Reduction<scalar_t, T> reduction = {
        strided<scalar_t>(columns.unsqueeze(2)),
        rates.template const_data_ptr<T>(),
        bands,
        splat,
        image == nullptr ? nullptr : image_planes.template mutable_data_ptr<T>(),
        dot,
        count,
        input == nullptr ? nullptr : input_planes.template const_data_ptr<T>(),
        sum_data};
    parallel_tasks(planes * bands, columns.numel() / (planes * bands), [&](int64_t begin, int64_t end) {
      kernels.reduce(p, reduction, begin, end);
    });
    if (image != nullptr) {
      auto* const target = image->mutable_data_ptr<scalar_t>();
      parallel_tasks(planes * p.h.size, p.w.size * layout.lanes, [&](int64_t begin, int64_t end) {
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
  const int64_t planes;     // of all groups and batch items
  const int64_t positions;  // L
  const Tensor rates;
};

struct Cpu {
  static void sample(const SymParams& params, const Tensor& input, const Tensor& dilation_map, Tensor& columns) {
    dispatch(params, input, dilation_map, {&columns}, [&](const auto& call) { call.sample(input, columns); });
  }

  static void splat(const SymParams& params, const Tensor& columns, const Tensor& dilation_map, Tensor& image) {
    dispatch(params, columns, dilation_map, {&image}, [&](const auto& call) {
      call.reduce(columns, &params.term, &image, nullptr, nullptr, 0, nullptr);
    });
  }

  static void dot(
      const SymParams& params, const Tensor& columns, const Tensor& input, const Tensor& dilation_map, Tensor& result) {
    dispatch(params, columns, dilation_map, {&result}, [&](const auto& call) {
      call.reduce(columns, nullptr, nullptr, &input, &params.term, 1, &result);
    });
  }

  static void unfold_backward(
      const SymParams& params,
      const Tensor& grad_output,
      const Tensor& input,
      const Tensor& dilation_map,
      Tensor& grad_input,
      Tensor& grad_dilation_map) {
    dispatch(params, grad_output, dilation_map, {&grad_input, &grad_dilation_map}, [&](const auto& call) {
      call.reduce(
          grad_output, &params.term, &grad_input, &input, gradient_terms(params.rates), params.rates,
          &grad_dilation_map);
    });
  }

 private:
  // f(call) for the type of `like`. Without a batch or channels, every output is empty or a sum of nothing.
  template <class F>
  static void dispatch(
      const SymParams& params,
      const Tensor& like,
      const Tensor& dilation_map,
      std::initializer_list<Tensor*> outputs,
      const F& f) {
    if (params.batch == 0 || params.channels == 0) {
      for (auto* const output : outputs) {
        output->zero_();
      }
      return;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, like.scalar_type(), "ddu", [&] { f(Call<scalar_t>(params, dilation_map)); });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CPU, m) { register_operators<Cpu>(m); }

}  // namespace ddu
