// SPDX-License-Identifier: MIT
// The convolution on a CPU: memory, threads, and matrix products. convolution.h describes the computation.

#include "convolution.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <string_view>
#include <type_traits>
#include <vector>

#include "../../convolution/fused.h"
#include "tasks.h"

namespace ddu {

namespace {

using at::Tensor;
using convolution::Arguments;
using convolution::Gradients;
using convolution::OutputMask;
using convolution::Problem;
using cpu::advise_large_pages;
using cpu::ceil_div;
using cpu::kGrain;
using cpu::kTile;
using cpu::parallel_tasks;
using cpu::strided;

// The most elements that a tile's samples may take, so that they fit the cache along with their weights.
constexpr int64_t kSamples = 96 * 1024;

// Planes per chunk: few, so that their samples and everything these touch stay in the cache, but more than one, since
// every chunk locates the taps again.
constexpr int64_t kChunkPlanes = 2;
constexpr int64_t kChunkColumns = 320;  // taps times lanes of a chunk, processed at a time

// The tasks of the backward are chunks of images. Images that add to the weight's gradient at the same time have
// separate sums, as many as it takes for enough tasks. If there are fewer chunks, they are cut into two bands, each
// with its own planes of grad_input. Both cost memory, and time to add up.
constexpr int64_t kMaxSets = 8;
constexpr int64_t kEnoughTasks = 4;
constexpr int64_t kTilesForBands = 16;

int64_t lanes_of(int64_t per_group) {
  return per_group <= 1 ? 1 : per_group <= 4 ? 4 : per_group <= 8 || (per_group % 16 != 0 && per_group < 64) ? 8 : 16;
}

cpu::Convolution cut(const Problem& problem) {
  cpu::Convolution c = {};
  c.window = problem.window;
  c.shared = problem.window;
  c.shared.groups =
      std::lcm(std::lcm(problem.window.groups, problem.groups), std::max<int64_t>(1, problem.mask_groups));
  const int64_t channels = c.window.channels;
  const int64_t taps = taps_of(c.window);
  c.planes = cpu::layout_of(c.shared, lanes_of(channels / c.shared.groups));
  c.groups = problem.groups;
  c.mask_groups = problem.mask_groups;
  c.out_channels = problem.out_channels;
  c.weight_per_image = problem.weight_per_image;
  c.tile = kTile;
  while (c.tile > 16 && c.tile * channels > kSamples) {
    c.tile /= 2;
  }
  c.taps = std::clamp<int64_t>(kSamples / (c.tile * channels), 1, taps);
  c.chunk_planes = std::min(kChunkPlanes, c.planes.planes);
  c.chunks = c.shared.groups * c.chunks_per_shared();
  c.chunk_taps = std::clamp<int64_t>(kChunkColumns / (c.chunk_planes * c.planes.lanes), 1, taps);
  c.bands = c.window.batch * c.chunks < kEnoughTasks && c.tiles() >= kTilesForBands ? 2 : 1;
  return c;
}

// parallel_tasks for tasks that don't start at 0.
template <class F>
void parallel_range(int64_t begin, int64_t end, int64_t work, const F& f) {
  parallel_tasks(end - begin, work, [&](int64_t first, int64_t last) { f(begin + first, begin + last); });
}

// ---- products

#if defined(CPUBLAS_BRGEMM_F32F32F32)
void library_product(
    int64_t rows,
    int64_t columns,
    int64_t inner,
    const float* left,
    int64_t left_pitch,
    const float* right,
    int64_t right_pitch,
    bool add,
    float* result,
    int64_t result_pitch) {
  at::native::cpublas::brgemm(
      rows, columns, inner, left_pitch, right_pitch, result_pitch, add, left, right, result, /*is_vnni=*/false);
}
#endif

// ---- weights

// [.., O, channels_in, taps] -> [images, groups, taps, channels_in, channels_out]
template <class T>
void pack_weight(const cpu::Convolution& c, const T* weight, int64_t images, T* packed) {
  constexpr int64_t kBlock = 16;
  const int64_t taps = taps_of(c.window);
  const int64_t inputs = c.channels_in();
  const int64_t outputs = c.channels_out();
  const int64_t blocks = ceil_div(outputs, kBlock);
  parallel_tasks(images * c.groups * blocks, kBlock * inputs * taps, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kBlock;
      const int64_t n = std::min(kBlock, outputs - first);
      const int64_t matrix = task / blocks;
      const T* const source = weight + (matrix * outputs + first) * inputs * taps;
      T* const target = packed + matrix * taps * inputs * outputs + first;
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t t = 0; t < taps; ++t) {
          for (int64_t o = 0; o < n; ++o) {
            target[(t * inputs + i) * outputs + o] = source[(o * inputs + i) * taps + t];
          }
        }
      }
    }
  });
}

// Calls f(row of the weight for an output and a chunk's channels, [channels, taps]; its place among those of all
// chunks, [taps, lanes]; chunk) for all of `images` images.
template <class F>
void for_chunk_weights(const cpu::Convolution& c, int64_t images, const F& f) {
  const int64_t taps = taps_of(c.window);
  const int64_t inputs = c.channels_in();
  const int64_t outputs = c.channels_out();
  const int64_t each = c.chunk_planes * c.planes.lanes * taps;
  parallel_tasks(images * c.chunks * outputs, each, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t o = task % outputs;
      const int64_t b = task / outputs / c.chunks;
      const cpu::Chunk chunk(c, task / outputs % c.chunks);
      const int64_t row = (b * c.out_channels + chunk.group * outputs + o) * inputs + chunk.first_channel;
      f(row * taps, task / outputs * c.chunk_weights() + o * taps * chunk.lanes, chunk);
    }
  });
}

template <class T>
void pack_chunk_weights(const cpu::Convolution& c, const T* weight, int64_t images, T* packed) {
  const int64_t taps = taps_of(c.window);
  for_chunk_weights(c, images, [&](int64_t from, int64_t to, const cpu::Chunk& chunk) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t i = 0; i < chunk.lanes; ++i) {
        packed[to + t * chunk.lanes + i] = i < chunk.channels ? weight[from + i * taps + t] : T(0);
      }
    }
  });
}

// Sums `copies` sets of gradients.
template <class T>
void unpack_chunk_weights(const cpu::Convolution& c, const T* sums, int64_t copies, T* grad_weight) {
  const int64_t taps = taps_of(c.window);
  for_chunk_weights(c, 1, [&](int64_t to, int64_t from, const cpu::Chunk& chunk) {
    for (int64_t i = 0; i < chunk.channels; ++i) {
      for (int64_t t = 0; t < taps; ++t) {
        T sum = 0;
        for (int64_t copy = 0; copy < copies; ++copy) {
          sum += sums[copy * c.chunks * c.chunk_weights() + from + t * chunk.lanes + i];
        }
        grad_weight[to + i * taps + t] = sum;
      }
    }
  });
}

// ---- views

template <class S>
cpu::Strided<const S*> from_image(cpu::Strided<const S*> view, int64_t b) {
  if (view.data != nullptr) {
    view.data += b * view.batch;
  }
  return view;
}

template <class scalar_t, class T>
cpu::PositionsView<scalar_t, T> from_image(const cpu::PositionsView<scalar_t, T>& view, int64_t b) {
  return {from_image(view.stored, b), from_image(view.computed, b)};
}

// From image b on, a tensor [B, channels, *pixels] that is dense in its memory format.
template <class Pointer>
cpu::Dense<Pointer> dense(Pointer data, int64_t channels, int64_t pixels, bool channels_last, int64_t b) {
  return {data + b * channels * pixels, channels * pixels, channels_last ? 1 : pixels, channels_last ? channels : 1};
}

bool is_channels_last(at::MemoryFormat format) { return format != at::MemoryFormat::Contiguous; }

// ---- a call, for one type

template <class scalar_t>
struct Call {
  using T = at::opmath_type<scalar_t>;
  static constexpr auto kType = c10::CppTypeToScalarType<T>::value;

  Call(const Problem& problem, const Arguments& a)
      : c(cut(problem)),
        kernels(cpu::convolution_kernels<scalar_t, T>()),
        input(strided<scalar_t>(a.input)),
        positions(cpu::view_positions<scalar_t, T>(a.positions)),
        weight(a.weight.to(kType).contiguous()),
        format(a.input.suggest_memory_format()) {
    if (a.mask.defined()) {
      mask = strided<scalar_t>(a.mask);
    }
  }

  static cpu::Product<T> product() {
    const auto own = cpu::convolution_kernels<scalar_t, T>().product;
#if defined(CPUBLAS_BRGEMM_F32F32F32)
    // Where torch's product isn't a single kernel for this machine's registers, it depends on the number of threads.
    if constexpr (std::is_same_v<T, float>) {
      static const bool wide = std::string_view(cpu::capability_name()) == "AVX512";
      return wide ? &library_product : own;
    }
#endif
    return own;
  }

  // Planes of images, or of parts of them: rows [begin, end) of the images from b on.
  void pack(int64_t b, int64_t begin, int64_t end, T* planes) const {
    const auto view = from_image(input, b);
    parallel_range(begin, end, c.planes.plane / c.planes.rows, [&](int64_t first, int64_t last) {
      kernels.pack(c, view, planes, begin, first, last);
    });
  }

  const T* weight_of(int64_t b) const {
    return weight.template const_data_ptr<T>() +
        (c.weight_per_image ? b * c.out_channels * c.channels_in() * taps_of(c.window) : 0);
  }

  Tensor forward(const Arguments& a) const {
    const auto& p = c.window;
    const int64_t outputs = positions_of(p);
    const int64_t tiles = ceil_div(outputs, c.tile);
    const int64_t wave = std::clamp<int64_t>(ceil_div(2 * at::get_num_threads(), tiles), 1, p.batch);
    const int64_t plane_rows = c.shared.groups * c.planes.planes * c.planes.rows;  // per image
    auto result = at::empty(result_shape(a), a.input.options().memory_format(format));
    const Tensor planes = at::empty({wave, c.shared.groups * c.planes.planes, c.planes.plane}, kType);
    advise_large_pages(planes);
    const int64_t weights = c.weight_per_image ? wave : 1;
    const Tensor packed = at::empty({weights, weight.numel() / (c.weight_per_image ? p.batch : 1)}, kType);
    auto* const packed_data = packed.template mutable_data_ptr<T>();
    const Tensor bias = a.bias.defined() ? a.bias.contiguous() : a.bias;
    for (int64_t b = 0; b < p.batch; b += wave) {
      const int64_t images = std::min(wave, p.batch - b);
      pack(b, 0, images * plane_rows, planes.template mutable_data_ptr<T>());
      if (c.weight_per_image || b == 0) {
        pack_weight(c, weight_of(b), c.weight_per_image ? images : 1, packed_data);
      }
      const bool bias_per_image = bias.defined() && bias.dim() == 2;
      const cpu::Convolve<scalar_t, T> call = {
          planes.template const_data_ptr<T>(),
          from_image(positions, b),
          from_image(mask, b),
          packed_data,
          bias.defined() ? bias.template const_data_ptr<scalar_t>() + (bias_per_image ? b * c.out_channels : 0)
                         : nullptr,
          bias_per_image,
          dense(result.template mutable_data_ptr<scalar_t>(), c.out_channels, outputs, is_channels_last(format), b),
          product()};
      const int64_t work = std::min(c.tile, outputs) * p.channels * taps_of(p);
      parallel_tasks(images * tiles, work, [&](int64_t begin, int64_t end) { kernels.forward(c, call, begin, end); });
    }
    return result;
  }

  Gradients backward(const Tensor& grad_output, const Arguments& a, const OutputMask& needs) const {
    const auto& p = c.window;
    const auto& l = c.planes;
    const int64_t outputs = positions_of(p);
    const int64_t taps = taps_of(p);
    const int64_t per_chunk = positions_per_group(p) * p.parameters * outputs;  // elements of the positions' gradient
    const int64_t image_rows = pixels_of(p) / p.axis[kMaxAxes - 1].size;
    const bool with_grad = needs[convolution::kInput] || needs[convolution::kPositions] || needs[convolution::kMask];
    const bool with_samples =
        needs[convolution::kWeight] || needs[convolution::kPositions] || needs[convolution::kMask];
    const bool summed = needs[convolution::kWeight] && !c.weight_per_image;

    Gradients result(convolution::kGradients);
    const auto zeros_in = [](bool needed, const Tensor& like) {
      return needed ? at::zeros(like.sizes(), like.options().dtype(kType)) : Tensor();
    };
    if (needs[convolution::kInput]) {
      result[convolution::kInput] = at::empty(a.input.sizes(), a.input.options().memory_format(format));
    }
    if (needs[convolution::kWeight]) {
      result[convolution::kWeight] = at::empty(a.weight.sizes(), a.weight.options().dtype(kType));
    }
    result[convolution::kPositions] = zeros_in(needs[convolution::kPositions], a.positions);
    result[convolution::kMask] = zeros_in(needs[convolution::kMask], a.mask);

    // Work on as many chunks at a time as there are threads, from a block of as few images as possible.
    const int64_t sets = std::clamp<int64_t>(kMaxSets / (c.chunks * c.bands), 1, p.batch);
    const int64_t wanted = ceil_div(at::get_num_threads(), c.bands);
    const int64_t block = std::clamp<int64_t>(ceil_div(wanted, c.chunks), 1, sets);
    const int64_t wave = std::min(wanted, block * c.chunks);
    const int64_t set = wave * c.chunk_planes * l.plane;
    const auto room = [](bool needed, at::IntArrayRef sizes) {
      const Tensor tensor = at::empty(needed ? sizes : at::IntArrayRef({0}), kType);
      advise_large_pages(tensor);
      return tensor;
    };
    const Tensor planes = room(with_samples, {set});
    const Tensor image = room(needs[convolution::kInput], {c.bands, set});
    // Of the two layouts of grad_output, make the one that it already has first.
    const auto grad_format = grad_output.suggest_memory_format();
    const bool grad_last = is_channels_last(grad_format);
    const Tensor grad_rows = room(with_grad || grad_last, {block, c.tiles(), kTile, c.out_channels});
    const Tensor grad_channels =
        room(needs[convolution::kWeight] || !grad_last, {block, c.tiles(), c.out_channels, kTile});
    const Tensor position_sums = room(needs[convolution::kPositions], {wave, per_chunk});
    const Tensor mask_sums = room(needs[convolution::kMask], {wave, taps, outputs});
    const Tensor weights = room(with_grad, {c.weight_per_image ? block : 1, c.chunks, c.chunk_weights()});
    const Tensor weight_sums = room(needs[convolution::kWeight], {sets, c.bands, c.chunks, c.chunk_weights()});
    weight_sums.zero_();

    const Tensor grad = grad_output.contiguous(grad_format);
    for (int64_t b = 0; b < p.batch; b += block) {
      const int64_t images = std::min(block, p.batch - b);
      const auto grad_view = dense(grad.template const_data_ptr<scalar_t>(), c.out_channels, outputs, grad_last, b);
      parallel_tasks(images * c.tiles(), kTile * c.out_channels, [&](int64_t begin, int64_t end) {
        kernels.pack_grad(c, grad_view, data(grad_rows), data(grad_channels), begin, end);
      });
      if (with_grad && (c.weight_per_image || b == 0)) {
        pack_chunk_weights(c, weight_of(b), c.weight_per_image ? images : 1, data(weights));
      }
      for (int64_t first = 0; first < images * c.chunks; first += wave) {
        const int64_t count = std::min(wave, images * c.chunks - first);
        const int64_t first_plane = plane_of(first);
        const int64_t last_plane = plane_of(first + count);
        if (with_samples) {
          pack(b, first_plane * l.rows, last_plane * l.rows, data(planes));
        }
        cpu::ConvolveBackward<scalar_t, T> call = {
            b,
            sets,
            first,
            first_plane,
            set,
            data(planes),
            from_image(positions, b),
            from_image(mask, b),
            data(weights),
            data(grad_rows),
            data(grad_channels),
            data(image),
            data(weight_sums),
            data(position_sums),
            data(mask_sums),
            {},
            product()};
        for (int64_t b = 0; b < bases_of(p.source, p.axes, p.parameters); ++b) {
          call.terms[b] = first_term(p, b);
        }
        const int64_t work = outputs * taps * c.chunk_planes * l.lanes / c.bands;
        parallel_tasks(
            count * c.bands, work, [&](int64_t begin, int64_t end) { kernels.backward(c, call, begin, end); });
        if (needs[convolution::kInput]) {
          const auto target = dense(
              result[convolution::kInput].template mutable_data_ptr<scalar_t>(), p.channels, pixels_of(p),
              is_channels_last(format), b);
          parallel_range(
              first_plane * image_rows, last_plane * image_rows, p.axis[kMaxAxes - 1].size * l.lanes,
              [&](int64_t begin, int64_t end) {
                kernels.unpack(c, data(image), first_plane, set, c.bands, target, begin, end);
              });
        }
        for (int64_t n = first; n < first + count; ++n) {
          const int64_t shared = (b + n / c.chunks) * c.shared.groups + cpu::Chunk(c, n % c.chunks).shared;
          if (needs[convolution::kPositions]) {
            const int64_t group = shared / (c.shared.groups / p.groups);
            add(data(position_sums) + (n - first) * per_chunk, per_chunk,
                data(result[convolution::kPositions]) + group * per_chunk);
          }
          if (needs[convolution::kMask]) {
            const int64_t group = shared / (c.shared.groups / c.mask_groups);
            add(data(mask_sums) + (n - first) * taps * outputs, taps * outputs,
                data(result[convolution::kMask]) + group * taps * outputs);
          }
        }
      }
      if (needs[convolution::kWeight] && c.weight_per_image) {
        for (int64_t i = 0; i < images; ++i) {
          unpack_chunk_weights(
              c, data(weight_sums) + (b + i) % sets * c.bands * c.chunks * c.chunk_weights(), c.bands,
              data(result[convolution::kWeight].select(0, b + i)));
        }
        weight_sums.zero_();
      }
    }
    if (summed) {
      unpack_chunk_weights(c, data(weight_sums), sets * c.bands, data(result[convolution::kWeight]));
    }
    for (const auto i : {convolution::kWeight, convolution::kPositions, convolution::kMask}) {
      const auto& like = i == convolution::kWeight ? a.weight : i == convolution::kPositions ? a.positions : a.mask;
      if (needs[i]) {
        result[i] = result[i].to(like.scalar_type());
      }
    }
    return result;
  }

 private:
  static T* data(const Tensor& tensor) { return tensor.numel() == 0 ? nullptr : tensor.template mutable_data_ptr<T>(); }

  static void add(const T* sums, int64_t n, T* target) {
    at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        target[k] += sums[k];
      }
    });
  }

  // The first plane of a chunk, which is also the end of the planes before it.
  int64_t plane_of(int64_t number) const {
    const int64_t shared = number / c.chunks_per_shared();
    return shared * c.planes.planes + number % c.chunks_per_shared() * c.chunk_planes;
  }

  std::vector<int64_t> result_shape(const Arguments& a) const {
    std::vector<int64_t> shape = {c.window.batch, c.out_channels};
    for (int64_t axis = 2; axis < a.input.dim(); ++axis) {
      shape.push_back(c.window.axis[kMaxAxes - a.input.dim() + axis].out_size);
    }
    return shape;
  }

  const cpu::Convolution c;
  const cpu::ConvolutionKernels<scalar_t, T>& kernels;
  const cpu::Strided<const scalar_t*> input;
  const cpu::PositionsView<scalar_t, T> positions;
  const Tensor weight;  // in the type that sums are computed in
  const at::MemoryFormat format;
  cpu::Strided<const scalar_t*> mask = {};
};

// With few channels per group, depthwise above all, the product is too small to matter: cached columns will do.
bool takes(const Problem& problem, const Arguments&) {
  return problem.groups == 1 || problem.window.channels / problem.groups >= 4;
}

bool takes_backward(const Problem& problem, const Tensor&, const Arguments& a, const OutputMask&) {
  return takes(problem, a);
}

Tensor forward(const Problem& problem, const Arguments& a) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.input.scalar_type(), "convolution", [&] {
    return Call<scalar_t>(problem, a).forward(a);
  });
}

Gradients backward(const Problem& problem, const Tensor& grad_output, const Arguments& a, const OutputMask& needs) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, a.input.scalar_type(), "convolution", [&] {
    return Call<scalar_t>(problem, a).backward(grad_output, a, needs);
  });
}

const convolution::Registered registered(c10::DeviceType::CPU, {&takes, &forward, &takes_backward, &backward});

}  // namespace

}  // namespace ddu
