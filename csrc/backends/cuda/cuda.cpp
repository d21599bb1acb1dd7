// SPDX-License-Identifier: MIT
// The CUDA device: the kernels that a call takes, and their workspaces.

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "../backend.h"
#include "launch.h"
#include "launches.h"
#include "views.h"

// NOTE [ CUDA paths ]
// Every operator has a general path, which takes any type, layout and derivative in one or two launches, and a fast one
// for the calls that make up a training step:
//
//              general                                      fast
//     sample   sample_kernel                                sample_tile_kernel: with rates, one or two axes
//                                           pack_kernel,    sample_packets_kernel: the rest
//     splat    reduce_kernel                                                tile_kernel, finish_kernel
//     dot      reduce_kernel                                pack_kernel,    tile_kernel, finish_kernel
//     both     reduce_kernel                                pack_kernel,    tile_kernel, finish_kernel
//
// plus a conversion after reduce_kernel if the sums have another type than the result. `Paths` decides which one a call
// takes, unless a test has decided (`forced`). The kernels of the fast path overlap: NOTE [ Dependent launches ].
// Convolutions that convolution.cpp does not take go through these paths: NOTE [ Fused convolution ].
//
// Results that need no atomic additions are the same in every run. The others, the images of splat and unfold_backward,
// are the same if torch.use_deterministic_algorithms(True) asks for it: NOTE [ Fixed point ].

namespace ddu {

namespace {

using at::Tensor;
using cuda::is_wide;
using cuda::view_image;

// ---- views

cuda::ColumnsView view_columns(const Tensor& columns) {
  return {columns.const_data_ptr(), columns.stride(0), columns.stride(1), columns.stride(2)};
}

template <class... Tensors>
bool any_wide(const Tensors&... tensors) {
  return (is_wide(tensors) || ...);
}

// ---- which path

struct Paths {
  const UnfoldParams& p;
  c10::ScalarType type;

  // Tiles, and the copies of the image that they use, pay off if there are many samples in all, and several per pixel.
  // Otherwise latency or memory matters more.
  static constexpr int64_t kManyEntries = int64_t(1) << 20;
  static constexpr int64_t kSamplesPerPixel = 3;

  // Nor do they pay off if padding the channels would mostly add zeros: `channels` is the least number per group.
  bool pays(int64_t channels) const {
    const int64_t samples = taps_of(p) * positions_of(p);
    return cuda::forced.fast ||
        (p.batch * p.channels * samples >= kManyEntries && samples >= kSamplesPerPixel * pixels_of(p) &&
         p.channels / p.groups >= channels);
  }

  // Whether the fast kernels can compute the call at all, by type and sizes.
  bool possible() const { return type != at::kDouble && fits_int(); }

  // Whether everything that the fast kernels count fits an int.
  bool fits_int() const {
    constexpr int64_t kLimit = int64_t(1) << 28;
    const auto fits = [](const Axis<int64_t>& axis) {
      return axis.size < kLimit && axis.padding < kLimit && axis.dilation * (axis.kernel - 1) < kLimit;
    };
    int64_t bordered = 1;
    for (const auto& axis : p.axis) {
      if (!fits(axis) || bordered >= kLimit) {
        return false;
      }
      bordered *= &axis == p.axis && p.axes < 3 ? 1 : padded(axis.size);
    }
    return bordered < 4 * kLimit && taps_of(p) < kLimit && pixels_of(p) < kLimit && positions_of(p) < kLimit &&
        p.channels < kLimit;
  }

  bool fast_sample() const {
    const int64_t packet = 16 / static_cast<int64_t>(c10::elementSize(type));
    return possible() && is_value(p.term) && pays(packet / 2 + 1);
  }

  // The terms: one for splat, unless null, and `dots` for dots.
  bool fast_reduce(const Term* splat, const Term* terms, int dots) const {
    return possible() && (splat == nullptr || is_value(*splat)) &&
        std::all_of(terms, terms + dots, is_first_derivative) && pays(cuda::kChannelBlock / 2);
  }
};

// ---- workspaces

// Memory for the work queued on a stream; the allocator doesn't reuse it until that work is done.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : memory_(bytes > 0 ? c10::cuda::CUDACachingAllocator::get()->allocate(bytes) : c10::DataPtr()) {}

  void* data() const { return memory_.get(); }

 private:
  c10::DataPtr memory_;
};

void clear(void* data, int64_t bytes, cudaStream_t stream) { C10_CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, stream)); }

int ceil_log2(double x) { return static_cast<int>(std::ceil(std::log2(std::max(x, 1.0)))); }

// NOTE [ Fixed point ]: from each window and each of its taps, a pixel gets at most the largest possible weight times
// the largest entry of columns. There is one bit to spare.
int log2_terms(const UnfoldParams& p) {
  double taps = 1;
  double windows = 1;
  double weight = 0;
  for (const auto& axis : p.axis) {
    taps *= static_cast<double>(axis.kernel);
    windows *= static_cast<double>(axis.out_size);
  }
  for (int q = 0; q < kCorners; ++q) {
    double most = p.term.count[q];
    for (int a = 0; a < kMaxAxes; ++a) {
      most *= std::pow(
          static_cast<double>(p.axis[a].kernel - 1) * static_cast<double>(p.axis[a].dilation) / 2, p.term.power[q][a]);
    }
    weight += most;
  }
  return ceil_log2(taps) + ceil_log2(windows) + ceil_log2(weight) + 1;
}

// The sums of an image, in the image itself if it has their type and layout. The caller must clear them.
class ImageSums {
 public:
  ImageSums(const UnfoldParams& p, bool blocked, Tensor& image)
      : p_(p),
        image_(image),
        fixed_(at::globalContext().deterministicAlgorithms()),
        in_place_(!blocked && !fixed_ && (image.scalar_type() == at::kFloat || image.scalar_type() == at::kDouble)),
        bytes_(sums_of(p, blocked, image) * cuda::bytes_per_sum(image.scalar_type(), fixed_)),
        workspace_(in_place_ ? 0 : padded_bytes()) {
    sums_ = {in_place_ ? image.mutable_data_ptr() : workspace_.data(), nullptr, log2_terms(p)};
  }

  const cuda::Sums& sums() const { return sums_; }

  // How many bytes to clear.
  int64_t bytes() const { return in_place_ ? bytes_ : padded_bytes(); }

  // To be called after clearing, before anything is added.
  void prepare(const Tensor& columns, cudaStream_t stream) {
    if (fixed_) {
      auto* const largest = reinterpret_cast<unsigned long long*>(static_cast<char*>(sums_.data) + whole(bytes_));
      cuda::launch_largest(p_, columns.scalar_type(), view_columns(columns), largest, stream);
      sums_.largest = largest;
    }
  }

  // To be called when everything has been added, if the sums are not blocked.
  void convert(cudaStream_t stream) {
    if (!in_place_) {
      cuda::launch_convert(p_, image_.scalar_type(), sums_, image_.mutable_data_ptr(), stream);
    }
  }

 private:
  static constexpr int64_t kAlignment = 16;

  static int64_t whole(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  // Includes room for the largest entry, after the sums.
  int64_t padded_bytes() const { return whole(bytes_) + kAlignment; }

  static int64_t sums_of(const UnfoldParams& p, bool blocked, const Tensor& image) {
    return blocked ? p.batch * p.groups * cuda::channel_blocks(p) * cuda::sums_plane(p) * cuda::kChannelBlock
                   : image.numel();
  }

  const UnfoldParams& p_;
  Tensor& image_;
  const bool fixed_;
  const bool in_place_;
  const int64_t bytes_;
  Workspace workspace_;
  cuda::Sums sums_;
};

// A copy of an image in packets. Making it also clears what the next kernel adds to.
class Packets {
 public:
  Packets(const UnfoldParams& p, const Tensor& image, void* cleared, int64_t cleared_bytes, cudaStream_t stream)
      : size_(cuda::packets_size(p, image.scalar_type())),
        workspace_(size_ * static_cast<int64_t>(image.element_size())) {
    const bool wide = is_wide(image) || size_ >= (int64_t(1) << 31);
    cuda::launch_pack(
        p, image.scalar_type(), wide, view_image(image), workspace_.data(), cleared, cleared_bytes, stream);
  }

  void* data() const { return workspace_.data(); }

 private:
  const int64_t size_;
  const Workspace workspace_;
};

// ---- the device

struct Cuda {
  static constexpr bool kMakesResults = false;

  static void sample(const SymParams& params, const Tensor& input, const Tensor& positions, Tensor& columns) {
    if (columns.numel() == 0) {
      return;
    }
    const c10::cuda::CUDAGuard guard(input.device());
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const auto p = concrete(params);
    const auto type = input.scalar_type();
    const bool wide = any_wide(input, columns);
    const auto located = cuda::view_positions(positions);
    if (!Paths{p, type}.fast_sample()) {
      cuda::launch_sample(p, type, wide, view_image(input), located, columns.mutable_data_ptr(), stream);
    } else if (p.axes <= 2 && by_axis(p.source)) {
      cuda::launch_sample_tiles(p, type, view_image(input), located, columns.mutable_data_ptr(), stream);
    } else {
      const Packets packets(p, input, nullptr, 0, stream);
      cuda::launch_sample_packets(p, type, packets.data(), located, columns.mutable_data_ptr(), stream);
    }
  }

  static void splat(const SymParams& params, const Tensor& columns, const Tensor& positions, Tensor& image) {
    reduce(concrete(params), columns, positions, &image, nullptr, nullptr, 0, 1, nullptr);
  }

  static void dot(
      const SymParams& params, const Tensor& columns, const Tensor& input, const Tensor& positions, Tensor& result) {
    reduce(concrete(params), columns, positions, nullptr, &input, &params.term, 1, 1, &result);
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
    reduce(
        concrete(params), grad_output, positions, &grad_input, &input, bases.data(),
        static_cast<int>(bases_of(params.source, params.axes, params.parameters)),
        static_cast<int>(multiples_of(params.source, params.axes)), &grad_positions);
  }

 private:
  // Splats columns into `image` with p.term, unless it is null. Writes their products with the `dots` terms of input,
  // and the `multiples` of each, to result [B, G, positions_per_group, dots, multiples, L].
  static void reduce(
      const UnfoldParams& p,
      const Tensor& columns,
      const Tensor& positions,
      Tensor* image,
      const Tensor* input,
      const Term* terms,
      int dots,
      int multiples,
      Tensor* result) {
    const c10::cuda::CUDAGuard guard(columns.device());
    const auto stream = c10::cuda::getCurrentCUDAStream();
    if (columns.numel() == 0) {  // no batch, no channels: nothing to add
      for (auto* const empty : {image, result}) {
        if (empty != nullptr && empty->numel() > 0) {
          clear(empty->mutable_data_ptr(), static_cast<int64_t>(empty->nbytes()), stream);
        }
      }
      return;
    }
    if (image != nullptr && image->numel() == 0) {  // an image without pixels
      image = nullptr;
      if (result == nullptr) {
        return;
      }
    }
    const auto type = columns.scalar_type();
    const bool wide =
        any_wide(columns) || (image != nullptr && is_wide(*image)) || (input != nullptr && is_wide(*input));
    const Paths paths{p, type};
    const bool fast = paths.fast_reduce(image != nullptr ? &p.term : nullptr, terms, dots);

    std::optional<ImageSums> image_sums;
    if (image != nullptr) {
      image_sums.emplace(p, fast, *image);
    }
    const auto clear_sums = [&] {
      if (image_sums) {
        clear(image_sums->sums().data, image_sums->bytes(), stream);
      }
    };
    const auto sums = [&] {
      if (image_sums) {
        image_sums->prepare(columns, stream);
      }
      return image_sums ? image_sums->sums() : cuda::Sums{};
    };

    if (!fast) {
      const auto input_view = input != nullptr ? view_image(*input) : cuda::ImageView{};
      clear_sums();
      cuda::launch_reduce(
          p, type, wide, view_columns(columns), cuda::view_positions(positions), image != nullptr ? &p.term : nullptr,
          sums(), input_view, terms, dots, multiples, result != nullptr ? result->mutable_data_ptr() : nullptr, stream);
      if (image_sums) {
        image_sums->convert(stream);
      }
      return;
    }

    std::optional<Packets> packets;
    if (input != nullptr) {
      packets.emplace(
          p, *input, image_sums ? image_sums->sums().data : nullptr, image_sums ? image_sums->bytes() : 0, stream);
    } else {
      clear_sums();
    }
    const int64_t splits = cuda::channel_splits(p, type);
    const int64_t windows = p.batch * p.groups * positions_per_group(p) * dots * multiples * positions_of(p);
    const bool in_place = result != nullptr && splits == 1 && result->scalar_type() == at::kFloat;
    const Workspace partial(in_place ? 0 : splits * windows * static_cast<int64_t>(sizeof(float)));
    auto* const partial_data = static_cast<float*>(in_place ? result->mutable_data_ptr() : partial.data());
    const auto added = sums();
    cuda::launch_tiles(
        p, type, view_columns(columns), cuda::view_positions(positions), added, packets ? packets->data() : nullptr,
        dots == 1 ? terms[0] : Term{}, dots, multiples, partial_data, stream);
    cuda::MapSums map_sums = {};
    if (result != nullptr && !in_place) {
      map_sums = {partial_data, result->mutable_data_ptr(), result->scalar_type() == at::kFloat, splits, windows};
    }
    cuda::launch_finish(p, type, wide, added, image != nullptr ? image->mutable_data_ptr() : nullptr, map_sums, stream);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ddu, CUDA, m) { register_operators<Cuda>(m); }

}  // namespace ddu
