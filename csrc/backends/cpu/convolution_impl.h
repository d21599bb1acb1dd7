// SPDX-License-Identifier: MIT
// The kernels of the convolution (NOTE [ CPU convolution ]). Included after kernels_impl.h, under the same conditions.

#include <memory>
#include <type_traits>

#include "convolution.h"

#if defined(DDU_CAPABILITY)

namespace ddu::cpu::DDU_CAPABILITY {

namespace {

// Rows and columns of a product are rounded up to multiples of this: a shape that is new to a library's product costs
// far more than a few extra rows.
constexpr int64_t kRowStep = 16;

inline int64_t in_row_steps(int64_t n) { return ceil_div(n, kRowStep) * kRowStep; }

// ---- a matrix product

// kRows rows by kVectors vectors of columns, with the sums kept in registers.
template <int kRows, int kVectors, class T>
inline void product_block(
    int64_t inner,
    const T* __restrict left,
    int64_t left_pitch,
    const T* __restrict right,
    int64_t right_pitch,
    bool add,
    T* __restrict result,
    int64_t result_pitch) {
  constexpr int kCount = DDU_VECTOR_BYTES / sizeof(T);
  using Value = typename Lanes<T, kCount>::Type;
  Value sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = add ? load<kCount>(result + r * result_pitch + v * kCount) : Value{};
    }
  }
  for (int64_t k = 0; k < inner; ++k) {
    Value factor[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      factor[v] = load<kCount>(right + k * right_pitch + v * kCount);
    }
    for (int r = 0; r < kRows; ++r) {
      const T value = left[r * left_pitch + k];
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = sum[r][v] + value * factor[v];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      store(sum[r][v], result + r * result_pitch + v * kCount);
    }
  }
}

template <int kRows, class T>
inline void product_rows(
    int64_t columns,
    int64_t inner,
    const T* left,
    int64_t left_pitch,
    const T* right,
    int64_t right_pitch,
    bool add,
    T* result,
    int64_t result_pitch) {
  constexpr int64_t kCount = DDU_VECTOR_BYTES / sizeof(T);
  constexpr int64_t kVectors = 2;
  int64_t j = 0;
  for (; j + kVectors * kCount <= columns; j += kVectors * kCount) {
    product_block<kRows, kVectors>(inner, left, left_pitch, right + j, right_pitch, add, result + j, result_pitch);
  }
  for (; j + kCount <= columns; j += kCount) {
    product_block<kRows, 1>(inner, left, left_pitch, right + j, right_pitch, add, result + j, result_pitch);
  }
  for (; j < columns; ++j) {
    for (int r = 0; r < kRows; ++r) {
      T sum = add ? result[r * result_pitch + j] : T(0);
      for (int64_t k = 0; k < inner; ++k) {
        sum += left[r * left_pitch + k] * right[k * right_pitch + j];
      }
      result[r * result_pitch + j] = sum;
    }
  }
}

template <class T>
void plain_product(
    int64_t rows,
    int64_t columns,
    int64_t inner,
    const T* left,
    int64_t left_pitch,
    const T* right,
    int64_t right_pitch,
    bool add,
    T* result,
    int64_t result_pitch) {
  constexpr int64_t kRows = DDU_VECTOR_BYTES == 64 ? 8 : 4;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    product_rows<kRows>(
        columns, inner, left + r * left_pitch, left_pitch, right, right_pitch, add, result + r * result_pitch,
        result_pitch);
  }
  for (; r < rows; ++r) {
    product_rows<1>(
        columns, inner, left + r * left_pitch, left_pitch, right, right_pitch, add, result + r * result_pitch,
        result_pitch);
  }
}

// target[c, r] = source[r, c]
template <class T>
inline void transpose(
    int64_t rows,
    int64_t columns,
    const T* __restrict source,
    int64_t source_pitch,
    T* __restrict target,
    int64_t target_pitch) {
  constexpr int kBlock = 16;
  int64_t first = 0;
  for (; first + kBlock <= columns; first += kBlock) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int c = 0; c < kBlock; ++c) {
        target[(first + c) * target_pitch + r] = source[r * source_pitch + first + c];
      }
    }
  }
  for (; first < columns; ++first) {
    for (int64_t r = 0; r < rows; ++r) {
      target[first * target_pitch + r] = source[r * source_pitch + first];
    }
  }
}

// ---- the corners of a position

// The weights of one position, in a copy that no store can alias.
template <class T, int kAxes>
struct PositionWeights {
  T corner[1 << kAxes];
};

template <class T, int kAxes>
inline PositionWeights<T, kAxes> at_position(const Weights<T, kAxes>& w, int64_t k) {
  PositionWeights<T, kAxes> result;
  for (int c = 0; c < 1 << kAxes; ++c) {
    result.corner[c] = w.corner[c][k];
  }
  return result;
}

template <class T, int kAxes, int kLanes>
struct Corners {
  typename Lanes<T, kLanes>::Type corner[1 << kAxes];
};

template <int kLanes, int kAxes, class T>
inline Corners<T, kAxes, kLanes> load_corners(const T* first, const CornerRows<kAxes>& rows) {
  Corners<T, kAxes, kLanes> result;
  for (int c = 0; c < 1 << kAxes; c += 2) {
    const T* const row = first + rows.offset[c / 2];
    result.corner[c] = load<kLanes>(row);
    result.corner[c + 1] = load<kLanes>(row + kLanes);
  }
  return result;
}

template <int kLanes, int kAxes, class T>
inline typename Lanes<T, kLanes>::Type weighted(
    const Corners<T, kAxes, kLanes>& corners, const PositionWeights<T, kAxes>& w) {
  auto sum = w.corner[0] * corners.corner[0];
  for (int c = 1; c < 1 << kAxes; ++c) {
    sum = sum + w.corner[c] * corners.corner[c];
  }
  return sum;
}

// ---- forward

// Stores n positions of a tile, [n, channels], plus the bias, in a result of any layout.
template <class scalar_t, class T>
inline void store_result(
    const T* __restrict tile,
    int64_t n,
    int64_t channels,
    const scalar_t* bias,
    scalar_t* __restrict target,
    int64_t channel,
    int64_t pixel) {
  if (channel == 1) {
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t o = 0; o < channels; ++o) {
        const T sum = tile[k * channels + o] + (bias == nullptr ? T(0) : static_cast<T>(bias[o]));
        target[k * pixel + o] = static_cast<scalar_t>(sum);
      }
    }
    return;
  }
  constexpr int64_t kBlock = 16;  // channels read at a time
  T rows[kBlock * kTile];
  for (int64_t first = 0; first < channels; first += kBlock) {
    const int64_t count = least(kBlock, channels - first);
    transpose(n, count, tile + first, channels, rows, kTile);
    for (int64_t c = 0; c < count; ++c) {
      T* const __restrict row = rows + c * kTile;
      if (bias != nullptr) {
        const T more = static_cast<T>(bias[first + c]);
        for (int64_t k = 0; k < n; ++k) {
          row[k] += more;
        }
      }
      store_row(row, n, target + (first + c) * channel);
    }
  }
}

// Samples of planes that are `plane_pitch` apart, each multiplied by the position's factor or by one: [n, planes,
// kLanes], with positions `step` apart.
template <int kLanes, int kAxes, class T>
inline void sample_planes(
    int64_t n,
    const T* planes,
    int64_t plane_pitch,
    int64_t count,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& w,
    const T* factor,
    T* samples,
    int64_t step) {
  for (int64_t plane = 0; plane < count; ++plane) {
    const T* const source = planes + plane * plane_pitch;
    T* const target = samples + plane * kLanes;
    for (int64_t k = 0; k < n; ++k) {
      for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
        const auto sampled = interpolate<kLanes>(source + pixel[k] * kLanes + c, rows, w, k);
        store(factor == nullptr ? sampled : factor[k] * sampled, target + k * step + c);
      }
    }
  }
}

template <class scalar_t, class T, int kAxes, int kLanes>
void convolve_lanes(const Convolution& c, const Convolve<scalar_t, T>& call, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 64;  // per product, so that their weights stay in the cache
  const auto& p = c.window;
  const auto& l = c.planes;
  const int64_t positions = positions_of(p);
  const int64_t tiles = ceil_div(positions, c.tile);
  const int64_t taps = taps_of(p);
  const int64_t inputs = c.channels_in();
  const int64_t outputs = c.channels_out();
  // Padding lanes of a plane fall on what is written next, if a row's entries are written in order. They are where each
  // group of the weight has one group of positions. After the last entry there is spare room.
  const bool in_order = c.groups % p.groups == 0;
  const int64_t pitch = c.taps * inputs + (l.per_group % kLanes == 0 ? 0 : kLanes);
  const int64_t per_positions = c.shared.groups / p.groups;
  const int64_t per_weight = c.shared.groups / c.groups;
  const int64_t per_mask = c.mask_groups == 0 ? 1 : c.shared.groups / c.mask_groups;
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, call.positions);
  Weights<T, kAxes> weights;
  int64_t pixel[kTile];
  T mask[kTile];
  T tile[kTile * kLanes];
  const int64_t most = least(c.tile, in_row_steps(positions));
  const std::unique_ptr<T[]> samples(new T[c.groups * most * pitch]);
  const std::unique_ptr<T[]> results(new T[most * c.out_channels]);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / tiles;
    const int64_t first = task % tiles * c.tile;
    const int64_t n = least(c.tile, positions - first);
    const int64_t rows = in_row_steps(n);
    const auto& r = call.result;
    scalar_t* const target = r.data + b * r.batch + first * r.pixel;
    const auto* const bias =
        call.bias == nullptr ? nullptr : call.bias + (call.bias_per_image ? b * c.out_channels : 0);
    T* sums = results.get();
    if constexpr (std::is_same_v<scalar_t, T>) {
      if (r.channel == 1 && bias == nullptr && rows == n) {
        sums = target;
      }
    }
    for (int64_t q = 0; q < c.groups; ++q) {
      fill_zero(samples.get() + (q * most + n) * pitch, (rows - n) * pitch);
    }
    for (int64_t start = 0; start < taps; start += c.taps) {
      const int64_t stop = least(start + c.taps, taps);
      for (int64_t g = 0; g < p.groups; ++g) {
        if (p.groups > 1 || start == 0) {
          located.locate(b * p.groups + g, first, n);
        }
        for (int64_t tap = start; tap < stop; ++tap) {
          located.move_to(tap);
          located.corners(pixel);
          located.weigh(p.term, weights);
          for (int64_t v = g * per_positions; v < (g + 1) * per_positions; ++v) {
            if (c.mask_groups != 0 && (v == g * per_positions || v % per_mask == 0)) {
              located.load(call.mask, v / per_mask * taps + tap, mask);
            }
            const int64_t q = v / per_weight;
            T* const place = samples.get() + q * most * pitch + (tap - start) * inputs + v % per_weight * l.per_group;
            const T* const source = call.planes + (b * c.shared.groups + v) * l.planes * l.plane;
            const T* const factor = c.mask_groups == 0 ? nullptr : mask;
            const int64_t whole = in_order ? l.planes : l.per_group / kLanes;
            sample_planes<kLanes>(n, source, l.plane, whole, corner, pixel, weights, factor, place, pitch);
            if (whole < l.planes) {
              sample_planes<kLanes>(
                  n, source + whole * l.plane, l.plane, 1, corner, pixel, weights, factor, tile, kLanes);
              for (int64_t k = 0; k < n; ++k) {
                for (int64_t lane = whole * kLanes; lane < l.per_group; ++lane) {
                  place[k * pitch + lane] = tile[k * kLanes + lane - whole * kLanes];
                }
              }
            }
          }
        }
      }
      for (int64_t q = 0; q < c.groups; ++q) {
        const T* const weight =
            call.weight + (((c.weight_per_image ? b * c.groups : 0) + q) * taps + start) * inputs * outputs;
        for (int64_t o = 0; o < outputs; o += kColumns) {
          call.product(
              rows, least(kColumns, outputs - o), (stop - start) * inputs, samples.get() + q * most * pitch, pitch,
              weight + o, outputs, start > 0, sums + q * outputs + o, c.out_channels);
        }
      }
    }
    if (sums == results.get()) {
      store_result(sums, n, c.out_channels, bias, target, r.channel, r.pixel);
    }
  }
}

// ---- backward

// grad_output in both layouts, [images, tiles, kTile, channels] and [images, tiles, channels, kTile], with zeros up to
// whole row steps. The layout that grad_output lacks may be null. A task is one tile of an image.
template <class scalar_t, class T>
void pack_grad(
    const Convolution& c, Dense<const scalar_t*> grad, T* grad_rows, T* grad_channels, int64_t begin, int64_t end) {
  const int64_t positions = positions_of(c.window);
  const int64_t channels = c.out_channels;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % c.tiles() * kTile;
    const int64_t n = least(kTile, positions - first);
    const int64_t padding = in_row_steps(n) - n;
    const auto* const source = grad.data + task / c.tiles() * grad.batch + first * grad.pixel;
    const int64_t at = task * kTile * channels;
    if (grad.pixel == 1) {
      for (int64_t o = 0; o < channels; ++o) {
        load_row(source + o * grad.channel, 1, n, grad_channels + at + o * kTile);
      }
    } else {
      for (int64_t k = 0; k < n; ++k) {
        load_row(source + k * grad.pixel, grad.channel, channels, grad_rows + at + k * channels);
      }
    }
    if (grad.pixel == 1 && grad_rows != nullptr) {
      transpose(channels, n, grad_channels + at, kTile, grad_rows + at, channels);
    } else if (grad.pixel != 1 && grad_channels != nullptr) {
      transpose(n, channels, grad_rows + at, channels, grad_channels + at, kTile);
    }
    if (grad_rows != nullptr) {
      fill_zero(grad_rows + at + n * channels, padding * channels);
    }
    for (int64_t o = 0; grad_channels != nullptr && o < channels; ++o) {
      fill_zero(grad_channels + at + o * kTile + n, padding);
    }
  }
}

// Where the columns' gradient, [n, planes, kLanes], meets the samples, for one tap of a tile. Pointers that are not
// needed are null.
template <class T>
struct Meeting {
  const T* planes;
  T* image;  // planes of grad_input
  int64_t plane_pitch;
  int64_t count;    // number of planes
  const T* factor;  // the mask
  const T* grad;
  T* samples;  // multiplied by the factor
  int64_t step;
  T* mask_sums;      // [n, kLanes], to which grad times samples is added
  T* position_sums;  // [terms, kTile, kLanes]: grad times factor times derivatives
  int64_t terms;
};

template <int kLanes, int kAxes, class T>
inline void meet(
    int64_t n,
    const Meeting<T>& m,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& value,
    const Weights<T, kAxes>* derivative) {
  constexpr int kCount = Lanes<T, kLanes>::kCount;
  const bool sampled = m.samples != nullptr || m.mask_sums != nullptr;
  for (int64_t k = 0; k < n; ++k) {
    const auto w = at_position(value, k);
    const T times = m.factor == nullptr ? T(1) : m.factor[k];
    for (int64_t plane = 0; plane < m.count; ++plane) {
      for (int lane = 0; lane < kLanes; lane += kCount) {
        const int64_t place = plane * m.plane_pitch + pixel[k] * kLanes + lane;
        const int64_t at = k * m.step + plane * kLanes + lane;
        Corners<T, kAxes, kLanes> corners = {};
        if (m.planes != nullptr) {
          corners = load_corners<kLanes>(m.planes + place, rows);
        }
        typename Lanes<T, kLanes>::Type sample = {};
        if (sampled) {
          sample = weighted<kLanes>(corners, w);
        }
        if (m.samples != nullptr) {
          store(m.factor == nullptr ? sample : times * sample, m.samples + at);
        }
        if (m.grad == nullptr) {
          continue;
        }
        auto grad = load<kLanes>(m.grad + at);
        if (m.mask_sums != nullptr) {
          T* const sum = m.mask_sums + k * kLanes + lane;
          store(load<kLanes>(sum) + grad * sample, sum);
        }
        if (m.factor != nullptr) {
          grad = times * grad;
        }
        for (int64_t r = 0; r < m.terms; ++r) {
          T* const sum = m.position_sums + (r * kTile + k) * kLanes + lane;
          store(load<kLanes>(sum) + grad * weighted<kLanes>(corners, at_position(derivative[r], k)), sum);
        }
        if (m.image != nullptr) {
          T* const first = m.image + place;
          for (int c = 0; c < 1 << kAxes; c += 2) {
            T* const row = first + rows.offset[c / 2];
            store(load<kLanes>(row) + w.corner[c] * grad, row);
            store(load<kLanes>(row + kLanes) + w.corner[c + 1] * grad, row + kLanes);
          }
        }
      }
    }
  }
}

template <class scalar_t, class T, int kAxes, int kLanes>
void convolve_backward_lanes(
    const Convolution& c, const ConvolveBackward<scalar_t, T>& call, int64_t begin, int64_t end) {
  const auto& p = c.window;
  const auto& l = c.planes;
  const int64_t positions = positions_of(p);
  const int64_t tiles = c.tiles();
  const int64_t taps = taps_of(p);
  const int64_t outputs = c.channels_out();
  const int64_t entries = positions_per_group(p);
  const int64_t terms = call.position_sums == nullptr ? 0 : bases_of(p.source, p.axes, p.parameters);
  const int64_t multiples = multiples_of(p.source, p.axes);
  const bool with_grad = call.image != nullptr || call.position_sums != nullptr || call.mask_sums != nullptr;
  const bool with_samples = call.planes != nullptr;
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, call.positions);
  Weights<T, kAxes> value;
  const std::unique_ptr<Weights<T, kAxes>[]> derivative(new Weights<T, kAxes>[terms]);
  int64_t pixel[kTile];
  T mask[kTile];
  T mask_products[kTile * kLanes];
  const std::unique_ptr<T[]> products(new T[terms * kTile * kLanes]);
  const int64_t most = least(kTile, in_row_steps(positions));
  const int64_t room = most * c.chunk_taps * c.chunk_planes * kLanes;
  const std::unique_ptr<T[]> grads(new T[with_grad ? room : 0]);
  const std::unique_ptr<T[]> samples(new T[call.weight_sums != nullptr ? room : 0]);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t band = task % c.bands;
    const int64_t number = call.first_chunk + task / c.bands;
    const int64_t b = number / c.chunks;
    const Chunk chunk(c, number % c.chunks);
    const int64_t g = chunk.shared / (c.shared.groups / p.groups);
    const int64_t m = c.mask_groups == 0 ? 0 : chunk.shared / (c.shared.groups / c.mask_groups);
    const int64_t plane0 = (b * c.shared.groups + chunk.shared) * l.planes + chunk.first_plane - call.first_plane;
    const T* const planes = with_samples ? call.planes + plane0 * l.plane : nullptr;
    T* const image = call.image == nullptr ? nullptr : call.image + band * call.set + plane0 * l.plane;
    const T* const weight = with_grad
        ? call.weight + ((c.weight_per_image ? b * c.chunks : 0) + number % c.chunks) * c.chunk_weights()
        : nullptr;
    T* const weight_sums = call.weight_sums == nullptr ? nullptr
                                                       : call.weight_sums +
            (((call.first_image + b) % call.sets * c.bands + band) * c.chunks + number % c.chunks) * c.chunk_weights();
    T* const position_sums = call.position_sums == nullptr
        ? nullptr
        : call.position_sums + task / c.bands * entries * p.parameters * positions;
    T* const mask_sums = call.mask_sums == nullptr ? nullptr : call.mask_sums + task / c.bands * taps * positions;
    const int64_t lanes = chunk.lanes;
    if (image != nullptr) {
      fill_zero(image, chunk.planes * l.plane);
    }
    for (int64_t t = tiles * band / c.bands; t < tiles * (band + 1) / c.bands; ++t) {
      const int64_t first = t * kTile;
      const int64_t n = least(kTile, positions - first);
      const int64_t rows = in_row_steps(n);
      located.locate(b * p.groups + g, first, n);
      fill_zero(products.get(), terms * kTile * kLanes);
      for (int64_t start = 0; start < taps; start += c.chunk_taps) {
        const int64_t stop = least(start + c.chunk_taps, taps);
        const int64_t pitch = (stop - start) * lanes;
        if (with_grad) {
          call.product(
              rows, pitch, outputs, call.grad_rows + (b * tiles + t) * kTile * c.out_channels + chunk.group * outputs,
              c.out_channels, weight + start * lanes, taps * lanes, false, grads.get(), pitch);
        }
        if (weight_sums != nullptr) {
          fill_zero(samples.get() + n * pitch, (rows - n) * pitch);
        }
        for (int64_t tap = start; tap < stop; ++tap) {
          located.move_to(tap);
          located.corners(pixel);
          located.weigh(p.term, value);
          for (int64_t r = 0; r < terms; ++r) {
            located.weigh(call.terms[r], derivative[r]);
          }
          if (c.mask_groups != 0) {
            located.load(call.mask, m * taps + tap, mask);
          }
          if (mask_sums != nullptr) {
            fill_zero(mask_products, n * kLanes);
          }
          const int64_t at = (tap - start) * lanes;
          const Meeting<T> meeting = {
              planes,
              image,
              l.plane,
              chunk.planes,
              c.mask_groups == 0 ? nullptr : mask,
              with_grad ? grads.get() + at : nullptr,
              weight_sums == nullptr ? nullptr : samples.get() + at,
              pitch,
              mask_sums == nullptr ? nullptr : mask_products,
              products.get(),
              terms};
          meet<kLanes>(n, meeting, corner, pixel, value, derivative.get());
          if (mask_sums != nullptr) {
            sum_lanes<kLanes>(mask_products, n, mask_sums + tap * positions + first);
          }
          if (terms > 0 && (entries > 1 || multiples > 1 || tap + 1 == taps)) {  // the sum of one tap, or of all
            const int64_t entry = entries > 1 ? tap : 0;
            T distance[kAxes];
            located.distances(distance);
            add_multiples<kLanes>(
                n, distance, terms, multiples, multiples == 1 || tap == 0, products.get(),
                position_sums + entry * p.parameters * positions + first, positions);
          }
        }
        if (weight_sums != nullptr) {
          call.product(
              outputs, pitch, rows,
              call.grad_channels + ((b * tiles + t) * c.out_channels + chunk.group * outputs) * kTile, kTile,
              samples.get(), pitch, true, weight_sums + start * lanes, taps * lanes);
        }
      }
    }
  }
}

// ---- instantiated for the axes and lanes of the call

#define DDU_LANES(function, ...) \
  switch (c.planes.lanes) { \
    case 1: \
      return function<__VA_ARGS__, 1> DDU_ARGUMENTS; \
    case 4: \
      return function<__VA_ARGS__, 4> DDU_ARGUMENTS; \
    case 8: \
      return function<__VA_ARGS__, 8> DDU_ARGUMENTS; \
    default: \
      return function<__VA_ARGS__, 16> DDU_ARGUMENTS; \
  }

#define DDU_AXES(function) \
  switch (c.window.axes) { \
    case 1: \
      DDU_LANES(function, scalar_t, T, 1) \
    case 2: \
      DDU_LANES(function, scalar_t, T, 2) \
    default: \
      DDU_LANES(function, scalar_t, T, 3) \
  }

template <class scalar_t, class T>
void pack_for_convolution(
    const Convolution& c, Strided<const scalar_t*> image, T* planes, int64_t first_row, int64_t begin, int64_t end) {
#define DDU_ARGUMENTS (c.shared, image, planes, begin, end, first_row)
  DDU_LANES(pack_lanes, scalar_t, T)
#undef DDU_ARGUMENTS
}

template <class scalar_t, class T>
void unpack_of_convolution(
    const Convolution& c,
    const T* planes,
    int64_t first_plane,
    int64_t set,
    int64_t copies,
    Dense<scalar_t*> image,
    int64_t begin,
    int64_t end) {
#define DDU_ARGUMENTS (c.shared, planes, set, copies, image, begin, end, first_plane)
  DDU_LANES(unpack_lanes, scalar_t, T)
#undef DDU_ARGUMENTS
}

template <class scalar_t, class T>
void convolve(const Convolution& c, const Convolve<scalar_t, T>& call, int64_t begin, int64_t end) {
#define DDU_ARGUMENTS (c, call, begin, end)
  DDU_AXES(convolve_lanes)
#undef DDU_ARGUMENTS
}

template <class scalar_t, class T>
void convolve_backward(const Convolution& c, const ConvolveBackward<scalar_t, T>& call, int64_t begin, int64_t end) {
#define DDU_ARGUMENTS (c, call, begin, end)
  DDU_AXES(convolve_backward_lanes)
#undef DDU_ARGUMENTS
}

#undef DDU_AXES
#undef DDU_LANES

}  // namespace

template <class scalar_t, class T>
constexpr ConvolutionKernels<scalar_t, T> kConvolution = {
    &pack_for_convolution<scalar_t, T>,
    &unpack_of_convolution<scalar_t, T>,
    &pack_grad<scalar_t, T>,
    &convolve<scalar_t, T>,
    &convolve_backward<scalar_t, T>,
    &plain_product<T>};

extern const ConvolutionKernels<double, double> kConvolutionDouble = kConvolution<double, double>;
extern const ConvolutionKernels<float, float> kConvolutionFloat = kConvolution<float, float>;
extern const ConvolutionKernels<c10::Half, float> kConvolutionHalf = kConvolution<c10::Half, float>;
extern const ConvolutionKernels<c10::BFloat16, float> kConvolutionBFloat16 = kConvolution<c10::BFloat16, float>;

}  // namespace ddu::cpu::DDU_CAPABILITY

#endif
