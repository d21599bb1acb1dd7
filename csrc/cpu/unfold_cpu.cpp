// SPDX-License-Identifier: MIT
// The CPU device: how the work is cut into tasks. The loops themselves are in loops.h.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../dispatch/backend.h"
#include "loops.h"

namespace ddu {

namespace {

using at::Tensor;

// NOTE [ CPU tasks ]
// Every element of a result is the sum of its terms in an order that depends on the sizes alone, so the number of
// threads does not change a bit:
// - columns: a task is one output row of one group;
// - image: a task owns whole planes, kChannels of them, and adds windows in the order of their positions;
// - map: each of these tasks leaves the sum over its channels in a workspace; they are added in the order of the
//   channels afterwards. So unfold_backward reads grad_output once.
constexpr int64_t kChannels = 8;

// Fewer entries of columns than this are not worth another thread.
constexpr int64_t kGrain = 16384;

// work: entries of columns in each of the tasks.
template <class F>
void parallel_tasks(int64_t tasks, int64_t work, const F& f) {
  at::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)), f);
}

int64_t plane_size(const UnfoldParams& p) { return cpu::padded(p.h.size) * cpu::padded(p.w.size); }

// NOTE [ CPU kernels ]: zeros, and the view of them that is the image.
Tensor empty_planes(const UnfoldParams& p, at::ScalarType type) {
  return at::zeros({p.batch, p.channels, cpu::padded(p.h.size), cpu::padded(p.w.size)}, type);
}

Tensor image_of(const Tensor& planes, const UnfoldParams& p) {
  return planes.narrow(2, cpu::kBorderLow, p.h.size).narrow(3, cpu::kBorderLow, p.w.size);
}

Tensor to_planes(const Tensor& image, const UnfoldParams& p, at::ScalarType type) {
  auto planes = empty_planes(p, type);
  image_of(planes, p).copy_(image);
  return planes;
}

// The rates of the windows of an output row, height and width: [B, G, rates, H_out, W_out] -> [W_out] each.
template <class T>
struct Rates {
  Rates(const Tensor& dilation_map, const UnfoldParams& p)
      : values(dilation_map.to(c10::CppTypeToScalarType<T>::value).contiguous()),
        data(values.const_data_ptr<T>()),
        p(p) {}

  const T* h(int64_t group, int64_t i) const { return data + (group * p.rates * p.h.out_size + i) * p.w.out_size; }
  const T* w(int64_t group, int64_t i) const { return h(group, i) + (p.rates - 1) * p.h.out_size * p.w.out_size; }

  Tensor values;
  const T* data;
  const UnfoldParams& p;
};

template <class T>
struct WeightRow {
  explicit WeightRow(int64_t width)
      : values(new T[4 * width]),
        weights{values.get(), values.get() + width, values.get() + 2 * width, values.get() + 3 * width} {}

  std::unique_ptr<T[]> values;
  cpu::Weights<T> weights;
};

template <class scalar_t>
void sample(const UnfoldParams& p, const Tensor& input, const Tensor& dilation_map, Tensor& columns) {
  using T = at::opmath_type<scalar_t>;
  const Tensor planes = to_planes(input, p, c10::CppTypeToScalarType<T>::value);
  const Rates<T> rates(dilation_map, p);
  const auto* const plane_data = planes.const_data_ptr<T>();
  auto* const column_data = columns.mutable_data_ptr<scalar_t>();
  const int64_t per_group = p.channels / p.groups;
  const int64_t taps = p.h.kernel * p.w.kernel;
  const int64_t width = p.w.out_size;
  const int64_t positions = p.h.out_size * width;
  const int64_t pitch = cpu::padded(p.w.size);

  parallel_tasks(p.batch * p.groups * p.h.out_size, per_group * taps * width, [&](int64_t begin, int64_t end) {
    cpu::Taps<T> row(p);
    const WeightRow<T> w(width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / p.h.out_size;  // of the batch's B * G
      const int64_t i = task % p.h.out_size;
      row.locate(i, rates.h(group, i), rates.w(group, i));
      for (int64_t tap = 0; tap < taps; ++tap) {
        const auto* const nw = row.corners(tap / p.w.kernel, tap % p.w.kernel);
        row.weigh(tap / p.w.kernel, tap % p.w.kernel, p.term, w.weights);
        for (int64_t c = group * per_group; c < (group + 1) * per_group; ++c) {
          cpu::gather_row(
              width, plane_data + c * plane_size(p), pitch, nw, w.weights,
              column_data + (c * taps + tap) * positions + i * width);
        }
      }
    }
  });
}

// Entries of one row of columns in the type that sums are computed in, whatever type and strides they have.
template <class scalar_t, class T>
struct ColumnRows {
  ColumnRows(const Tensor& columns, int64_t width)
      : data(columns.const_data_ptr<scalar_t>()),
        batch_stride(columns.stride(0)),
        row_stride(columns.stride(1)),
        position_stride(columns.stride(2)),
        width(width) {}

  const T* load(int64_t b, int64_t row, int64_t position, T* buffer) const {
    const scalar_t* const source = data + b * batch_stride + row * row_stride + position * position_stride;
    if constexpr (std::is_same_v<scalar_t, T>) {
      if (position_stride == 1) {
        return source;
      }
    }
    for (int64_t j = 0; j < width; ++j) {
      buffer[j] = static_cast<T>(source[j * position_stride]);
    }
    return buffer;
  }

  const scalar_t* data;
  int64_t batch_stride, row_stride, position_stride;
  int64_t width;
};

using Term = int8_t[2][2];

// One pass over the columns: adds term `splat` of them into `image`, unless it is null, and their products with the
// `count` terms `dots` of `input` into result [B, G, count, H_out, W_out].
template <class scalar_t>
void reduce(
    const UnfoldParams& p,
    const Tensor& columns,
    const Tensor& dilation_map,
    const Term* splat,
    Tensor* image,
    const Tensor* input,
    const Term* dots,
    int64_t count,
    Tensor* result) {
  using T = at::opmath_type<scalar_t>;
  constexpr auto type = c10::CppTypeToScalarType<T>::value;
  const int64_t per_group = p.channels / p.groups;
  const int64_t chunks = (per_group + kChannels - 1) / kChannels;
  const int64_t groups = p.batch * p.groups;
  const int64_t taps = p.h.kernel * p.w.kernel;
  const int64_t width = p.w.out_size;
  const int64_t positions = p.h.out_size * width;
  const int64_t pitch = cpu::padded(p.w.size);

  const Tensor image_planes = image != nullptr ? empty_planes(p, type) : Tensor();
  const Tensor input_planes = input != nullptr ? to_planes(*input, p, type) : Tensor();
  const Tensor partial = at::zeros({chunks, groups, count, positions}, type);
  const Rates<T> rates(dilation_map, p);
  const ColumnRows<scalar_t, T> rows(columns, width);
  auto* const image_data = image != nullptr ? image_planes.mutable_data_ptr<T>() : nullptr;
  const auto* const input_data = input != nullptr ? input_planes.const_data_ptr<T>() : nullptr;
  auto* const partial_data = partial.mutable_data_ptr<T>();

  parallel_tasks(groups * chunks, per_group * taps * positions, [&](int64_t begin, int64_t end) {
    cpu::Taps<T> row(p);
    const WeightRow<T> splat_weights(width);
    std::vector<WeightRow<T>> dot_weights;
    for (int64_t d = 0; d < count; ++d) {
      dot_weights.emplace_back(width);
    }
    const std::unique_ptr<T[]> buffer(new T[width]);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / chunks;
      const int64_t chunk = task % chunks;
      const int64_t first = group * per_group + chunk * kChannels;
      const int64_t last = std::min(first + kChannels, (group + 1) * per_group);
      for (int64_t i = 0; i < p.h.out_size; ++i) {
        row.locate(i, rates.h(group, i), rates.w(group, i));
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t m = tap / p.w.kernel;
          const int64_t n = tap % p.w.kernel;
          const auto* const nw = row.corners(m, n);
          if (image != nullptr) {
            row.weigh(m, n, *splat, splat_weights.weights);
          }
          for (int64_t d = 0; d < count; ++d) {
            row.weigh(m, n, dots[d], dot_weights[d].weights);
          }
          for (int64_t c = first; c < last; ++c) {
            const auto* const entries = rows.load(c / p.channels, c % p.channels * taps + tap, i * width, buffer.get());
            if (image != nullptr) {
              cpu::scatter_row(width, image_data + c * plane_size(p), pitch, nw, splat_weights.weights, entries);
            }
            for (int64_t d = 0; d < count; ++d) {
              auto* const sum = partial_data + ((chunk * groups + group) * count + d) * positions + i * width;
              cpu::dot_row(width, input_data + c * plane_size(p), pitch, nw, dot_weights[d].weights, entries, sum);
            }
          }
        }
      }
    }
  });

  if (image != nullptr) {
    image->copy_(image_of(image_planes, p));
  }
  if (result != nullptr) {
    const Tensor sum = at::zeros({groups * count * positions}, type);
    auto* const sum_data = sum.mutable_data_ptr<T>();
    at::parallel_for(0, sum.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t k = begin; k < end; ++k) {
          sum_data[k] += partial_data[chunk * sum.numel() + k];
        }
      }
    });
    result->copy_(sum.view(result->sizes()));
  }
}

struct Cpu {
  static void sample(const SymParams& params, const Tensor& input, const Tensor& dilation_map, Tensor& columns) {
    dispatch(columns, input, [&](auto zero) {
      ddu::sample<decltype(zero)>(concrete(params), input, dilation_map, columns);
    });
  }

  static void splat(const SymParams& params, const Tensor& columns, const Tensor& dilation_map, Tensor& image) {
    dispatch(image, columns, [&](auto zero) {
      reduce<decltype(zero)>(
          concrete(params), columns, dilation_map, &params.term, &image, nullptr, nullptr, 0, nullptr);
    });
  }

  static void dot(
      const SymParams& params, const Tensor& columns, const Tensor& input, const Tensor& dilation_map, Tensor& result) {
    dispatch(result, columns, [&](auto zero) {
      reduce<decltype(zero)>(
          concrete(params), columns, dilation_map, nullptr, nullptr, &input, &params.term, 1, &result);
    });
  }

  static void unfold_backward(
      const SymParams& params,
      const Tensor& grad_output,
      const Tensor& input,
      const Tensor& dilation_map,
      Tensor& grad_input,
      Tensor& grad_dilation_map) {
    static constexpr Term kOneRate[] = {{{0, 1}, {1, 0}}};                        // d/dy + d/dx
    static constexpr Term kRatePerAxis[] = {{{0, 0}, {1, 0}}, {{0, 1}, {0, 0}}};  // d/dy; d/dx
    dispatch(grad_dilation_map, grad_output, [&](auto zero) {
      reduce<decltype(zero)>(
          concrete(params), grad_output, dilation_map, &params.term, &grad_input, &input,
          params.rates == 1 ? kOneRate : kRatePerAxis, params.rates, &grad_dilation_map);
    });
  }

 private:
  template <class F>
  static void dispatch(const Tensor& output, const Tensor& like, const F& f) {
    if (output.numel() == 0) {
      return;
    }
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, like.scalar_type(), "ddu", [&] { f(scalar_t()); });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CPU, m) { register_operators<Cpu>(m); }

}  // namespace ddu
