// SPDX-License-Identifier: MIT
// The sums of windows in differentiable steps, with columns. Used on devices without kernels for them, and for
// derivatives with respect to the positions beyond the first.

#include <ATen/ATen.h>
#include <ATen/OpMathType.h>

#include <iterator>
#include <limits>

#include "../autograd/family.h"
#include "../autograd/node.h"
#include "../dispatch/calls.h"
#include "sums.h"

namespace ddu::sums {

namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;

// Columns take as much memory as K images, where K is the number of taps, so they are made for a few images at a time.
constexpr double kColumnsLimit = 1 << 28;

// The arguments of the form, in the type that sums are computed in, as [B, M, C / M, K, L] with 1 for missing axes.
class Form {
 public:
  Form(const Tensors& x, const Options& options)
      : x_(x), window_(options.window), mask_groups_(std::max<int64_t>(options.mask_groups, 1)) {
    const auto& positions = x[kPositions];
    const auto& image = x[kInput].defined() ? x[kInput] : x[kQuery];
    type_ = at::toOpMathType(image.scalar_type());
    channels_ = image.sym_size(1);
    batch_ = image.sym_size(0);
    for (int64_t a = 0; a < positions.dim() - 2; ++a) {
      taps_ *= window_.kernel_size.size() == 1 ? window_.kernel_size[0] : window_.kernel_size[a];
      grid_.push_back(positions.sym_size(2 + a));
      places_ = places_ * grid_.back();
    }
    if (x[kMask].defined()) {
      mask_groups_ = (x[kMask].sym_size(1) / taps_).guard_int(__FILE__, __LINE__);
      mask_ = grouped(x[kMask], 1, taps_, places_);
    }
    if (x[kQuery].defined()) {
      query_ = grouped(x[kQuery], per_group(), 1, places_);
    }
    if (x[kWeight].defined()) {
      weight_ = grouped(x[kWeight], per_group(), taps_, 1);
    }
    if (x[kTaps].defined()) {
      const auto taps = x[kTaps].reshape_symint({batch_, mask_groups_, per_group(), 1, places_});
      chosen_ = taps == at::arange(taps_, taps.options()).view({taps_, 1});
    }
  }

  Tensor positions() const { return computed(x_[kPositions]); }
  Tensor input() const { return computed(x_[kInput]); }
  Tensor computed(const Tensor& tensor) const { return tensor.to(type_); }

  // The factors of the samples: [B, C * K, L].
  Tensor factors() const { return flat(product({query_, mask_, weight_}, /*full=*/true)); }

  // Given samples [B, C * K, L], the gradients with respect to the arguments that the form is linear in.
  void add_contractions(const Tensor& samples, const Wanted& wanted, Tensors& results) const {
    auto s = samples.reshape_symint({batch_, mask_groups_, per_group(), taps_, places_});
    if (chosen_.defined()) {
      s = at::where(chosen_, s, at::zeros({}, s.options()));
    }
    if (wanted[kQuery]) {
      results[kQuery] = over_grid(product({s, mask_, weight_}).sum(3), channels_);
    }
    if (wanted[kMask]) {
      results[kMask] = over_grid(product({s, query_, weight_}).sum(2), mask_groups_ * taps_);
    }
    if (wanted[kWeight]) {
      results[kWeight] = product({s, query_, mask_}).sum(4).reshape_symint({batch_, channels_, taps_});
    }
  }

 private:
  SymInt per_group() const { return channels_ / mask_groups_; }

  Tensor grouped(const Tensor& tensor, const SymInt& channels, const SymInt& taps, const SymInt& places) const {
    return computed(tensor).reshape_symint({batch_, mask_groups_, channels, taps, places});
  }

  Tensor over_grid(const Tensor& tensor, const SymInt& channels) const {
    std::vector<SymInt> shape = {batch_, channels};
    shape.insert(shape.end(), grid_.begin(), grid_.end());
    return tensor.reshape_symint(shape);
  }

  Tensor flat(const Tensor& tensor) const { return tensor.reshape_symint({batch_, channels_ * taps_, places_}); }

  // The product of those factors that are defined.
  Tensor product(std::initializer_list<Tensor> factors, bool full = false) const {
    Tensor result;
    for (const auto& factor : factors) {
      if (factor.defined()) {
        result = result.defined() ? result * factor : factor;
      }
    }
    if (full) {
      result = result.expand_symint({batch_, mask_groups_, per_group(), taps_, places_});
      if (chosen_.defined()) {
        result = at::where(chosen_, result, at::zeros({}, result.options()));
      }
    }
    return result;
  }

  const Tensors& x_;
  const ddu::Options& window_;
  int64_t mask_groups_;
  at::ScalarType type_;
  int64_t taps_ = 1;
  SymInt batch_, channels_;
  SymInt places_ = 1;
  std::vector<SymInt> grid_;
  Tensor query_, mask_, weight_, chosen_;
};

bool wants_samples(const Wanted& wanted) { return wanted[kQuery] || wanted[kMask] || wanted[kWeight]; }

// The results in the types and layouts that kernels return.
Tensors finished(const Tensors& x, Tensors results) {
  const auto& image = x[kInput].defined() ? x[kInput] : x[kQuery];
  for (size_t i = 0; i < kSlots; ++i) {
    if (results[i].defined()) {
      const bool of_image = i == kQuery || i == kInput || i == kMask;
      results[i] = results[i]
                       .to(i == kPositions ? x[kPositions].scalar_type() : image.scalar_type())
                       .contiguous(of_image ? format_of(image) : at::MemoryFormat::Contiguous);
    }
  }
  return results;
}

bool is_traced(const Tensor& tensor) { return tensor.defined() && tensor.unsafeGetTensorImpl()->is_python_dispatch(); }

// How many images to process at a time: as many as keep the columns below the limit, but at least one. Under tracing
// there is no memory to limit, so the program is traced in one piece.
int64_t chunk_size(const Tensors& x, const Options& options) {
  const auto& image = x[kInput].defined() ? x[kInput] : x[kQuery];
  if (std::any_of(x.begin(), x.end(), is_traced)) {
    return std::numeric_limits<int64_t>::max();
  }
  double bytes =
      static_cast<double>(at::elementSize(at::toOpMathType(image.scalar_type()))) * static_cast<double>(image.size(1));
  for (int64_t a = 0; a < x[kPositions].dim() - 2; ++a) {
    const auto& kernel = options.window.kernel_size;
    bytes *= static_cast<double>(kernel.size() == 1 ? kernel[0] : kernel[a]) *
        static_cast<double>(x[kPositions].size(2 + a));
  }
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(kColumnsLimit / std::max(bytes, 1.0), 1e15)));
}

// f(x, more), computed for part of the batch at a time.
template <class F>
Tensors in_chunks(const Tensors& x, const Tensor& more, const Options& options, const F& f) {
  const auto chunk = chunk_size(x, options);
  if (chunk == std::numeric_limits<int64_t>::max() || chunk >= x[kPositions].size(0)) {
    return f(x, more);
  }
  std::vector<Tensors> parts(kSlots);
  const auto batch = x[kPositions].size(0);
  for (int64_t start = 0; start < batch; start += chunk) {
    const auto narrowed = [&](const Tensor& tensor) {
      return tensor.defined() ? tensor.narrow(0, start, std::min(chunk, batch - start)) : tensor;
    };
    Tensors part;
    std::transform(x.begin(), x.end(), std::back_inserter(part), narrowed);
    const auto results = f(part, narrowed(more));
    for (size_t i = 0; i < kSlots; ++i) {
      if (results[i].defined()) {
        parts[i].push_back(results[i]);
      }
    }
  }
  Tensors results(kSlots);
  for (size_t i = 0; i < kSlots; ++i) {
    results[i] = parts[i].empty() ? Tensor() : at::cat(parts[i]);
  }
  return results;
}

}  // namespace

Tensors by_columns(const Tensors& x, const Options& options, SymIntArrayRef image_size, const Wanted& wanted) {
  const WithoutAutocast guard;
  const auto& window = options.window;
  return in_chunks(x, Tensor(), options, [&](const Tensors& part, const Tensor&) {
    const Form form(part, options);
    Tensors results(kSlots);
    const auto positions = form.positions();
    if (wants_samples(wanted)) {
      form.add_contractions(sample(form.input(), positions, window), wanted, results);
    }
    if (wanted[kPositions]) {
      std::tie(results[kInput], results[kPositions]) = sample_backward(form.factors(), form.input(), positions, window);
      results[kInput] = wanted[kInput] ? results[kInput] : Tensor();
    } else if (wanted[kInput]) {
      const auto size = image_size.empty() ? part[kInput].sym_sizes().slice(2) : image_size;
      results[kInput] = splat(form.factors(), size, positions, window);
    }
    return finished(part, results);
  });
}

Tensors along_positions(
    const Tensors& x,
    const Tensor& direction,
    const Options& options,
    SymIntArrayRef image_size,
    const Wanted& wanted) {
  const auto& window = options.window;
  return in_chunks(x, direction, options, [&](const Tensors& part, const Tensor& of_part) {
    const Form form(part, options);
    Tensors results(kSlots);
    const auto positions = form.positions();
    const auto along = form.computed(of_part);
    if (wants_samples(wanted)) {
      const auto change = sample_along(form.input(), positions, along, window);
      if (change.defined()) {
        form.add_contractions(change, wanted, results);
      }
    }
    if (wanted[kInput]) {
      results[kInput] = splat_along(form.factors(), image_size, positions, along, window);
    }
    if (wanted[kPositions]) {
      results[kPositions] = dots_along(form.factors(), form.input(), positions, along, window);
    }
    return finished(part, results);
  });
}

namespace {

Tensors contract_by_columns(const char* op, const Tensors& x, const Options& options, SymIntArrayRef image_size) {
  check(op, x, options, image_size);
  return by_columns(x, options, image_size, options.wanted);
}

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CompositeExplicitAutograd, m) { register_contractions<&contract_by_columns>(m); }

}  // namespace ddu::sums
