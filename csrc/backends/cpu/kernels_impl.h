// SPDX-License-Identifier: MIT
// The CPU kernels (NOTE [ CPU kernels ]). Included by kernels_<instruction set>.cpp. Each of these defines
// DDU_CAPABILITY, a namespace, and includes everything below before it turns on its instruction set.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <memory>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../math/interpolation.h"
#include "../../math/positions.h"
#include "kernels.h"

#if defined(DDU_CAPABILITY)

namespace ddu::cpu::DDU_CAPABILITY {

namespace {

// Used instead of <algorithm>, whose templates have the same name for all instruction sets.

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
inline void fill_zero(T* target, int64_t n) {
  for (int64_t k = 0; k < n; ++k) {
    target[k] = 0;
  }
}

template <class T>
inline void copy(const T* __restrict source, int64_t n, T* __restrict target) {
  for (int64_t k = 0; k < n; ++k) {
    target[k] = source[k];
  }
}

// ---- rows of a tensor <-> tiles

#if defined(DDU_F16C)
inline void load_row(const c10::Half* source, int64_t stride, int64_t n, float* row) {
  int64_t k = 0;
  if (stride == 1) {
    for (; k + 8 <= n; k += 8) {
      _mm256_storeu_ps(row + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + k))));
    }
  }
  for (; k < n; ++k) {
    row[k] = _cvtsh_ss(source[k * stride].x);
  }
}

inline void store_row(const float* row, int64_t n, c10::Half* target) {
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    const auto half = _mm256_cvtps_ph(_mm256_loadu_ps(row + k), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + k), half);
  }
  for (; k < n; ++k) {
    target[k].x = _cvtss_sh(row[k], _MM_FROUND_TO_NEAREST_INT);
  }
}
#endif

// Loads n <= kTile elements of a row, converted.
template <class scalar_t, class T>
inline void load_row(const scalar_t* __restrict source, int64_t stride, int64_t n, T* __restrict row) {
  if (stride == 1) {
    for (int64_t k = 0; k < n; ++k) {
      row[k] = static_cast<T>(source[k]);
    }
  } else {
    for (int64_t k = 0; k < n; ++k) {
      row[k] = static_cast<T>(source[k * stride]);
    }
  }
}

template <class scalar_t, class T>
inline void store_row(const T* __restrict row, int64_t n, scalar_t* __restrict target) {
  for (int64_t k = 0; k < n; ++k) {
    target[k] = static_cast<scalar_t>(row[k]);
  }
}

// n positions of kLanes rows, `pitch` elements apart -> tile [kTile, kLanes]
template <int kLanes, class T>
inline void interleave(int64_t n, const T* __restrict rows, int64_t pitch, T* __restrict tile) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; ++c) {
      tile[k * kLanes + c] = rows[c * pitch + k];
    }
  }
}

// The same for rows of any type and strides, of which only the first `lanes` exist. rows: [kLanes, kTile], zeros for
// missing rows.
template <int kLanes, class scalar_t, class T>
inline void load_tile(
    const scalar_t* source, int64_t pitch, int64_t stride, int64_t lanes, int64_t n, T* rows, T* tile) {
  if constexpr (std::is_same_v<scalar_t, T>) {
    if (stride == 1 && lanes == kLanes) {
      interleave<kLanes>(n, source, pitch, tile);
      return;
    }
  }
  for (int64_t c = 0; c < lanes; ++c) {
    load_row(source + c * pitch, stride, n, rows + c * kTile);
  }
  interleave<kLanes>(n, rows, kTile, tile);
}

// tile [kTile, kLanes] -> n positions of kLanes rows, `pitch` elements apart
template <int kLanes, class T>
inline void deinterleave(int64_t n, const T* __restrict tile, T* __restrict rows, int64_t pitch) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; ++c) {
      rows[c * pitch + k] = tile[k * kLanes + c];
    }
  }
}

// The same for contiguous rows of any type, of which the first `lanes` are wanted. rows: [kLanes, kTile], scratch
// space.
template <int kLanes, class scalar_t, class T>
inline void store_tile(const T* tile, int64_t lanes, int64_t n, T* rows, scalar_t* target, int64_t pitch) {
  if constexpr (std::is_same_v<scalar_t, T>) {
    if (lanes == kLanes) {
      deinterleave<kLanes>(n, tile, target, pitch);
      return;
    }
  }
  deinterleave<kLanes>(n, tile, rows, kTile);
  for (int64_t c = 0; c < lanes; ++c) {
    store_row(rows + c * kTile, n, target + c * pitch);
  }
}

// ---- the taps of a tile

template <class T, int kAxes>
struct Weights {
  T corner[1 << kAxes][kTile];
};

// Where the taps of a tile lie: move to a tap, then query it. If the taps of a window share their parameters, the taps
// of a row are visited in sequence. So many of them are kept that windows of the usual sizes are located once per tile,
// and the memory is bounded for any kernel size.
template <class scalar_t, class T, int kAxes>
class Taps {
 public:
  Taps(const UnfoldParams& p, const PositionsView<scalar_t, T>& positions) : p_(p), positions_(positions) {
    int64_t pitch = 1;
    for (int a = kAxes - 1; a >= 0; --a) {
      auto& place = places_[a];
      narrow_ = narrow_ && fits_int32(axis(a));
      place.pitch = pitch;
      place.kept = a == kAxes - 1 && by_axis(p.source) ? least(axis(a).kernel, kMaxKept) : 1;
      place.located.reset(new Located[place.kept]);
      pitch *= padded(axis(a).size);
    }
    if (p.source == Source::kAffine) {
      map_.reset(new T[p.parameters * kTile]);
    }
  }

  // Locates the n <= kTile positions from `first` on, for one of the batch's groups.
  void locate(int64_t group, int64_t first, int64_t n) {
    group_ = group % p_.groups;
    item_ = group / p_.groups;
    first_ = first;
    n_ = n;
    int64_t index[kAxes];
    int64_t rest = first;
    for (int a = kAxes - 1; a >= 0; --a) {
      index[a] = rest % axis(a).out_size;
      rest /= axis(a).out_size;
    }
    for (int64_t k = 0; k < n; ++k) {
      for (int a = 0; a < kAxes; ++a) {
        places_[a].base[k] = index[a] * axis(a).stride + first_pixel(axis(a), p_.source, p_.aligned);
        index_[a][k] = index[a];
      }
      for (int a = kAxes - 1; a >= 0 && ++index[a] == axis(a).out_size && a > 0; --a) {
        index[a] = 0;
      }
    }
    for (int a = 0; a < kAxes; ++a) {
      places_[a].first = axis(a).kernel;
    }
    if (!per_tap(p_.source)) {
      load_parameters(0);
    }
  }

  // Loads the values of a tensor [B, channels, *out] at the positions.
  template <class S>
  void load(const Strided<const S*>& view, int64_t channel, T* __restrict target) const {
    const S* const source = view.data + item_ * view.batch + channel * view.channel;
    // Whether the positions are evenly spaced in the tensor, in row-major order.
    bool in_a_row = true;
    int64_t row = view.axis[kMaxAxes - 1];
    const int64_t step = row;
    for (int a = kAxes - 2; a >= 0; --a) {
      row *= axis(a + 1).out_size;
      in_a_row = in_a_row && view.axis[kMaxAxes - kAxes + a] == row;
    }
    if (in_a_row) {
      load_row(source + first_ * step, step, n_, target);
      return;
    }
    for (int64_t k = 0; k < n_; ++k) {
      int64_t offset = 0;
      for (int a = 0; a < kAxes; ++a) {
        offset += index_[a][k] * view.axis[kMaxAxes - kAxes + a];
      }
      target[k] = static_cast<T>(source[offset]);
    }
  }

  void move_to(int64_t tap) {
    int64_t rest = tap;
    if (per_tap(p_.source)) {
      load_parameters(tap);
    }
    for (int a = kAxes - 1; a >= 0; --a) {
      places_[a].tap = rest % axis(a).kernel;
      rest /= axis(a).kernel;
    }
    if (p_.source == Source::kAffine) {
      displace();
    }
    for (int a = kAxes - 1; a >= 0; --a) {
      auto& place = places_[a];
      const int64_t m = place.tap;
      if (!by_axis(p_.source) || m < place.first || m >= place.first + place.kept) {
        place.first = m;
        for (int64_t t = m; t < least(m + place.kept, axis(a).kernel); ++t) {
          locate_tap(a, t, place.located[t - m]);
        }
      }
    }
  }

  // The tap's distance from the window's centre at rate one, along every axis.
  void distances(T (&distance)[kAxes]) const {
    for (int a = 0; a < kAxes; ++a) {
      distance[a] = tap_distance<T>(axis(a), places_[a].tap);
    }
  }

  // For every position, the pixel of the first corner in a padded plane.
  void corners(int64_t* __restrict pixel) const {
    const int64_t* const last = at(kAxes - 1).offset;
    copy(last, n_, pixel);
    for (int a = 0; a < kAxes - 1; ++a) {
      const int64_t* const __restrict offset = at(a).offset;
      for (int64_t k = 0; k < n_; ++k) {
        pixel[k] += offset[k];
      }
    }
  }

  // Whether each position's tap lies between the centres of the first and last pixel on every axis, for an image
  // surrounded by zeros; also true where its place is NaN.
  void inside(bool* __restrict result) const {
    for (int64_t k = 0; k < n_; ++k) {
      result[k] = true;
    }
    for (int a = 0; a < kAxes; ++a) {
      const auto& place = places_[a];
      const int64_t first = kBorderLow * place.pitch;
      const int64_t last = (kBorderLow + axis(a).size - 1) * place.pitch;
      const int64_t* const __restrict offset = at(a).offset;
      const T* const __restrict fraction = at(a).fraction;
      for (int64_t k = 0; k < n_; ++k) {
        result[k] = result[k] && offset[k] >= first && (offset[k] < last || (offset[k] == last && fraction[k] == 0));
      }
    }
    for (int64_t k = 0; k < n_; ++k) {
      result[k] = result[k] || unit_[k] != unit_[k];
    }
  }

  int64_t item() const { return item_; }

  void weigh(const Term& term, Weights<T, kAxes>& weights) const {
    T distance[kAxes];
    distances(distance);
    bool first = true;
    for (int q = 0; q < 1 << kAxes; ++q) {
      if (term.count[q] == 0) {
        continue;
      }
      if (q == 0 && term.count[0] == 1) {  // the value: factors of one
        add_partial<0>(T(1), first, weights);
      } else {
        add_partials<(1 << kAxes) - 1>(q, term_factor(term, q, distance), first, weights);
      }
      first = false;
    }
    if (first) {
      for (auto& corner : weights.corner) {
        fill_zero(corner, n_);
      }
    }
  }

 private:
  static constexpr int64_t kMaxKept = 32;

  struct Located {
    int64_t offset[kTile];
    T fraction[kTile];
    T direction[kTile];  // not set if the padding is zeros
  };

  struct Place {
    int64_t pitch;  // of a padded plane, in pixels
    int64_t kept;   // taps located together
    int64_t first;  // the first of them
    int64_t tap;
    int64_t base[kTile];
    T parameter[kTile];
    std::unique_ptr<Located[]> located;
  };

  const Axis<int64_t>& axis(int a) const { return p_.axis[kMaxAxes - kAxes + a]; }
  const Located& at(int a) const { return places_[a].located[places_[a].tap - places_[a].first]; }

  // Also sets unit_: if a parameter is not finite, its difference from itself is NaN. The tap then has NaN weights and
  // no neighbours, so what is read is NaN, and what is added to the image falls into the border.
  void load_parameters(int64_t tap) {
    const int64_t first = parameter_channel(p_, group_, tap, kMaxAxes - kAxes);
    for (int64_t r = 0; r < p_.parameters; ++r) {
      T* const parameter = p_.source == Source::kAffine ? map_.get() + r * kTile : places_[r].parameter;
      if (positions_.stored.data != nullptr) {
        load(positions_.stored, first + r, parameter);
      } else {
        load(positions_.computed, first + r, parameter);
      }
      for (int64_t k = 0; k < n_; ++k) {
        const T poison = parameter[k] - parameter[k];
        unit_[k] = r == 0 ? T(1) + poison : unit_[k] + poison;
      }
    }
    for (int a = 1; a < kAxes && p_.parameters == 1; ++a) {
      copy(places_[0].parameter, n_, places_[a].parameter);
    }
  }

  // Turns an affine map into the displacements of a tap; NaN where a parameter is not finite.
  void displace() {
    T distance[kAxes];
    distances(distance);
    for (int a = 0; a < kAxes; ++a) {
      const T* const __restrict row = map_.get() + a * (kAxes + 1) * kTile;
      T* const __restrict parameter = places_[a].parameter;
      for (int64_t k = 0; k < n_; ++k) {
        T matrix[kAxes];
        for (int e = 0; e < kAxes; ++e) {
          matrix[e] = row[e * kTile + k];
        }
        parameter[k] = displacement(matrix, row[kAxes * kTile + k], distance) + (unit_[k] - 1);
      }
    }
  }

  void locate_tap(int a, int64_t tap, Located& located) const {
    if (p_.padding_mode == PaddingMode::kZeros) {
      if (narrow_) {
        locate_tap_as<int32_t, true>(a, tap, located);
      } else {
        locate_tap_as<int64_t, true>(a, tap, located);
      }
    } else if (narrow_) {
      locate_tap_as<int32_t, false>(a, tap, located);
    } else {
      locate_tap_as<int64_t, false>(a, tap, located);
    }
  }

  template <class Index, bool kZeros>
  void locate_tap_as(int a, int64_t tap, Located& located) const {
    const auto place = tap_place<T>(axis(a), p_.source, p_.aligned, tap);
    const Index size = static_cast<Index>(axis(a).size);
    const int64_t pitch = places_[a].pitch;
    const int64_t* const __restrict base = places_[a].base;
    const T* const __restrict parameter = places_[a].parameter;
    const auto mode = kZeros ? PaddingMode::kZeros : p_.padding_mode;
    for (int64_t k = 0; k < n_; ++k) {
      const auto at = neighbours<T, Index>(
          size, static_cast<Index>(base[k] + place.pixels), place.fraction, place.slope, parameter[k], mode);
      located.offset[k] = (at.pixel + kBorderLow) * pitch;
      located.fraction[k] = at.fraction;
      if (!kZeros) {
        located.direction[k] = at.direction;
      }
    }
  }

  // Calls with q as a constant.
  template <int kLast>
  void add_partials(int q, T factor, bool first, Weights<T, kAxes>& weights) const {
    if (q == kLast) {
      add_partial<kLast>(factor, first, weights);
    } else if constexpr (kLast > 0) {
      add_partials<kLast - 1>(q, factor, first, weights);
    }
  }

  template <int q>
  void add_partial(T factor, bool first, Weights<T, kAxes>& weights) const {
    const bool directed = q != 0 && p_.padding_mode != PaddingMode::kZeros;
    if (directed) {
      add_partial_as<q, true>(factor, first, weights);
    } else {
      add_partial_as<q, false>(factor, first, weights);
    }
  }

  template <int q, bool kDirected>
  void add_partial_as(T factor, bool first, Weights<T, kAxes>& weights) const {
    const T* fraction[kAxes];
    const T* direction[kAxes];
    for (int a = 0; a < kAxes; ++a) {
      fraction[a] = at(a).fraction;
      direction[a] = at(a).direction;
    }
    for (int64_t k = 0; k < n_; ++k) {
      AxisWeights<T> along[kAxes];
      for (int a = 0; a < kAxes; ++a) {
        along[a] = axis_weights(fraction[a][k], kDirected ? direction[a][k] : T(1));
      }
      const T unit = unit_[k] * factor;
      for (int c = 0; c < 1 << kAxes; ++c) {
        const T weight = unit * corner_weight(along, q, c);
        weights.corner[c][k] = first ? weight : weights.corner[c][k] + weight;
      }
    }
  }

  const UnfoldParams& p_;
  const PositionsView<scalar_t, T>& positions_;
  bool narrow_ = true;
  int64_t item_ = 0;   // of the batch
  int64_t group_ = 0;  // of the item
  int64_t first_ = 0;  // the first position
  int64_t n_ = 0;      // the number of positions
  int64_t index_[kAxes][kTile];
  T unit_[kTile];  // 1, or NaN where a parameter is not finite
  Place places_[kAxes];
  std::unique_ptr<T[]> map_;  // affine maps: [parameters, kTile]
};

// ---- one tap of a tile, for kLanes channels. pitch: elements from one row of a plane to the next.

// Consecutive lanes as one value, no wider than a register: wider vectors the compiler may pass through memory.
#if !defined(DDU_VECTOR_BYTES)
#define DDU_VECTOR_BYTES 32
#endif

template <class T, int kLanes>
struct Lanes {
  static constexpr int kCount = kLanes * sizeof(T) <= DDU_VECTOR_BYTES ? kLanes : DDU_VECTOR_BYTES / sizeof(T);
  typedef T Type __attribute__((vector_size(kCount * sizeof(T))));
};

template <int kLanes, class T>
inline typename Lanes<T, kLanes>::Type load(const T* source) {
  typename Lanes<T, kLanes>::Type value;
  __builtin_memcpy(&value, source, sizeof(value));
  return value;
}

template <class T, class Value>
inline void store(const Value& value, T* target) {
  __builtin_memcpy(target, &value, sizeof(value));
}

// Distances of the corners' rows from the first one, in elements: entry [c / 2] is for an even corner c and its
// neighbour along the last axis.
template <int kAxes>
struct CornerRows {
  int64_t offset[1 << (kAxes - 1)];
};

template <int kAxes, int kLanes>
inline CornerRows<kAxes> corner_rows(const UnfoldParams& p) {
  CornerRows<kAxes> rows = {};
  int64_t pitch = kLanes;
  for (int a = kMaxAxes - 1; a > kMaxAxes - kAxes; --a) {
    pitch *= padded(p.axis[a].size);
    for (int c = 0; c < 1 << (kAxes - 1); ++c) {
      rows.offset[c] += (2 * c & axis_bit(a - 1)) != 0 ? pitch : 0;
    }
  }
  return rows;
}

// The weighted sum of position k's corners, for some of the lanes.
template <int kLanes, int kAxes, class T>
inline typename Lanes<T, kLanes>::Type interpolate(
    const T* first, const CornerRows<kAxes>& rows, const Weights<T, kAxes>& w, int64_t k) {
  auto sum = w.corner[0][k] * load<kLanes>(first) + w.corner[1][k] * load<kLanes>(first + kLanes);
  for (int c = 2; c < 1 << kAxes; c += 2) {
    const T* const row = first + rows.offset[c / 2];
    sum = sum + w.corner[c][k] * load<kLanes>(row) + w.corner[c + 1][k] * load<kLanes>(row + kLanes);
  }
  return sum;
}

template <int kLanes, int kAxes, class T>
inline void gather(
    int64_t n,
    const T* plane,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& w,
    T* tile) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      store(interpolate<kLanes>(plane + pixel[k] * kLanes + c, rows, w, k), tile + k * kLanes + c);
    }
  }
}

template <int kLanes, int kAxes, class T>
inline void scatter(
    int64_t n,
    T* plane,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& w,
    const T* tile) {
  for (int64_t k = 0; k < n; ++k) {
    for (int lane = 0; lane < kLanes; lane += Lanes<T, kLanes>::kCount) {
      T* const first = plane + pixel[k] * kLanes + lane;
      const auto value = load<kLanes>(tile + k * kLanes + lane);
      for (int c = 0; c < 1 << kAxes; c += 2) {
        T* const row = first + rows.offset[c / 2];
        store(load<kLanes>(row) + w.corner[c][k] * value, row);
        store(load<kLanes>(row + kLanes) + w.corner[c + 1][k] * value, row + kLanes);
      }
    }
  }
}

// sums: [kTile, kLanes]
template <int kLanes, int kAxes, class T>
inline void multiply(
    int64_t n,
    const T* plane,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& w,
    const T* tile,
    T* sums) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      T* const sum = sums + k * kLanes + c;
      const auto sampled = interpolate<kLanes>(plane + pixel[k] * kLanes + c, rows, w, k);
      store(load<kLanes>(sum) + load<kLanes>(tile + k * kLanes + c) * sampled, sum);
    }
  }
}

// ---- the tasks

// padded_row: the number of an image's row of pixels (along the last axis) among the rows of a padded plane. The other
// way round: whether row `row` of a padded plane lies in the image, and its offset there.
inline int64_t padded_row(const UnfoldParams& p, int64_t row) {
  int64_t result = 0;
  int64_t pitch = 1;
  for (int a = kMaxAxes - 2; a >= p.first_axis(); --a) {
    result += (row % p.axis[a].size + kBorderLow) * pitch;
    row /= p.axis[a].size;
    pitch *= padded(p.axis[a].size);
  }
  return result;
}

inline bool row_in_image(const UnfoldParams& p, int64_t row, const int64_t (&stride)[kMaxAxes], int64_t& offset) {
  bool inside = true;
  offset = 0;
  for (int a = kMaxAxes - 2; a >= p.first_axis(); --a) {
    const int64_t index = row % padded(p.axis[a].size) - kBorderLow;
    row /= padded(p.axis[a].size);
    inside = inside && index >= 0 && index < p.axis[a].size;
    offset += index * stride[a];
  }
  return inside;
}

// planes: holds the rows from `first_row` on, counted over all planes.
template <class scalar_t, class T, int kLanes>
void pack_lanes(
    const UnfoldParams& p,
    Strided<const scalar_t*> image,
    T* planes,
    int64_t begin,
    int64_t end,
    int64_t first_row = 0) {
  const auto l = layout_of(p, kLanes);
  const int64_t size = p.axis[kMaxAxes - 1].size;
  const int64_t stride = image.axis[kMaxAxes - 1];
  const int64_t width = padded(size);
  T rows[kLanes * kTile] = {};
  for (int64_t task = begin; task < end; ++task) {
    T* const target = planes + (task - first_row) * width * kLanes;
    const int64_t plane = task / l.rows % l.planes;
    const int64_t group = task / l.rows / l.planes % p.groups;
    const int64_t b = task / l.rows / l.planes / p.groups;
    int64_t row = 0;
    if (!row_in_image(p, task % l.rows, image.axis, row)) {
      fill_zero(target, width * kLanes);
      continue;
    }
    fill_zero(target, kBorderLow * kLanes);
    fill_zero(target + (kBorderLow + size) * kLanes, kBorderHigh * kLanes);
    const int64_t first = plane * kLanes;
    const int64_t lanes = least(kLanes, l.per_group - first);
    const auto* const source = image.data + b * image.batch + (group * l.per_group + first) * image.channel + row;
    if (image.channel == 1 && lanes == kLanes) {
      for (int64_t x = 0; x < size; ++x) {
        for (int c = 0; c < kLanes; ++c) {
          target[(kBorderLow + x) * kLanes + c] = static_cast<T>(source[x * stride + c]);
        }
      }
      continue;
    }
    fill_zero(rows + lanes * kTile, (kLanes - lanes) * kTile);
    for (int64_t x = 0; x < size; x += kTile) {
      const int64_t n = least(kTile, size - x);
      load_tile<kLanes>(source + x * stride, image.channel, stride, lanes, n, rows, target + (kBorderLow + x) * kLanes);
    }
  }
}

// planes: holds the planes from `first_plane` on; the next copy of them follows `set` elements later.
template <class scalar_t, class T, int kLanes>
void unpack_lanes(
    const UnfoldParams& p,
    const T* planes,
    int64_t set,
    int64_t copies,
    Dense<scalar_t*> image,
    int64_t begin,
    int64_t end,
    int64_t first_plane = 0) {
  const auto l = layout_of(p, kLanes);
  const int64_t size = p.axis[kMaxAxes - 1].size;
  const int64_t pixels = pixels_of(p);
  const int64_t image_rows = pixels / size;
  T rows[kLanes * kTile] = {};
  T tile[kTile * kLanes] = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task % image_rows;
    const int64_t plane = task / image_rows;  // among all
    const int64_t group = plane / l.planes;
    const int64_t first = plane % l.planes * kLanes;
    const int64_t lanes = least(kLanes, l.per_group - first);
    const T* const source =
        planes + (plane - first_plane) * l.plane + (padded_row(p, row) * padded(size) + kBorderLow) * kLanes;
    auto* const target = image.data + group / p.groups * image.batch +
        (group % p.groups * l.per_group + first) * image.channel + row * size * image.pixel;
    for (int64_t x = 0; x < size; x += kTile) {
      const int64_t n = least(kTile, size - x);
      const T* sum = source + x * kLanes;
      for (int64_t copy = 1; copy < copies; ++copy) {
        const T* const more = source + copy * set + x * kLanes;
        for (int64_t k = 0; k < n * kLanes; ++k) {
          tile[k] = sum[k] + more[k];
        }
        sum = tile;
      }
      if (image.pixel == 1) {
        store_tile<kLanes>(sum, lanes, n, rows, target + x, image.channel);
        continue;
      }
      for (int64_t k = 0; k < n; ++k) {
        for (int64_t c = 0; c < lanes; ++c) {
          target[(x + k) * image.pixel + c * image.channel] = static_cast<scalar_t>(sum[k * kLanes + c]);
        }
      }
    }
  }
}

template <class scalar_t, class T, int kAxes, int kLanes>
void sample_lanes(
    const UnfoldParams& p,
    int64_t together,
    const T* planes,
    const PositionsView<scalar_t, T>& view,
    scalar_t* columns,
    int64_t begin,
    int64_t end) {
  const auto l = layout(p);
  const int64_t positions = positions_of(p);
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t chunks = ceil_div(l.planes, together);
  const int64_t taps = taps_of(p);
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, view);
  Weights<T, kAxes> weights;
  int64_t pixel[kTile];
  T tile[kTile * kLanes] = {};
  T rows[kLanes * kTile] = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % tiles * kTile;
    const int64_t n = least(kTile, positions - first);
    const int64_t chunk = task / tiles % chunks;
    const int64_t group = task / tiles / chunks;
    located.locate(group, first, n);
    for (int64_t tap = 0; tap < taps; ++tap) {
      located.move_to(tap);
      located.corners(pixel);
      located.weigh(p.term, weights);
      const int64_t last = least((chunk + 1) * together, l.planes);
      for (int64_t plane = chunk * together; plane < last; ++plane) {
        gather<kLanes>(n, planes + (group * l.planes + plane) * l.plane, corner, pixel, weights, tile);
        const int64_t lanes = least(kLanes, l.per_group - plane * kLanes);
        const int64_t channel = group * l.per_group + plane * kLanes;
        store_tile<kLanes>(
            tile, lanes, n, rows, columns + (channel * taps + tap) * positions + first, taps * positions);
      }
    }
  }
}

// Sums over the lanes: products [kTile, kLanes] -> sum [n].
template <int kLanes, class T>
inline void sum_lanes(const T* __restrict products, int64_t n, T* __restrict sum) {
  for (int64_t k = 0; k < n; ++k) {
    T total = 0;
    for (int c = 0; c < kLanes; ++c) {
      total += products[k * kLanes + c];
    }
    sum[k] = total;
  }
}

// Sums a tap's products with `terms` terms, [terms, kTile, kLanes], over the lanes, and adds these sums and their
// multiples to sums [terms, multiples, L], or stores them there. Resets the products to zeros.
template <int kLanes, int kAxes, class T>
inline void add_multiples(
    int64_t n,
    const T (&distance)[kAxes],
    int64_t terms,
    int64_t multiples,
    bool store,
    T* products,
    T* sums,
    int64_t pitch) {
  T row[kTile];
  for (int64_t d = 0; d < terms; ++d) {
    sum_lanes<kLanes>(products + d * kTile * kLanes, n, row);
    for (int64_t e = 0; e < multiples; ++e) {
      T* const __restrict sum = sums + (d * multiples + e) * pitch;
      const T factor = e + 1 < multiples ? distance[e] : T(1);
      for (int64_t k = 0; k < n; ++k) {
        sum[k] = store ? factor * row[k] : sum[k] + factor * row[k];
      }
    }
  }
  fill_zero(products, terms * kTile * kLanes);
}

template <class scalar_t, class T, int kAxes, int kLanes>
void reduce_lanes(const UnfoldParams& p, const Reduction<scalar_t, T>& r, int64_t begin, int64_t end) {
  const auto l = layout(p);
  const int64_t groups = p.batch * p.groups;
  const int64_t positions = positions_of(p);
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t taps = taps_of(p);
  const int64_t entries = positions_per_group(p);
  const int64_t row = r.columns.channel;
  const int64_t step = r.columns.axis[kMaxAxes - 1];
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, r.positions);
  Weights<T, kAxes> weights;
  int64_t pixel[kTile];
  T rows[kLanes * kTile] = {};
  T tile[kTile * kLanes] = {};
  const int64_t chunks = ceil_div(l.planes, r.together);
  const int64_t size = kTile * kLanes;
  const std::unique_ptr<Weights<T, kAxes>[]> by_parameter(new Weights<T, kAxes>[r.count]);
  const std::unique_ptr<T[]> products(new T[r.together * r.count * size]);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t band = task % r.bands;
    const int64_t chunk = task / r.bands % chunks;
    const int64_t group = task / r.bands / chunks;
    const int64_t first_plane = chunk * r.together;
    const int64_t last_plane = least(first_plane + r.together, l.planes);
    for (int64_t t = tiles * band / r.bands; t < tiles * (band + 1) / r.bands; ++t) {
      const int64_t first = t * kTile;
      const int64_t n = least(kTile, positions - first);
      located.locate(group, first, n);
      fill_zero(products.get(), r.together * r.count * size);
      for (int64_t tap = 0; tap < taps; ++tap) {
        located.move_to(tap);
        located.corners(pixel);
        if (r.image != nullptr) {
          located.weigh(*r.splat, weights);
        }
        for (int64_t d = 0; d < r.count; ++d) {
          located.weigh(r.dot[d], by_parameter[d]);
        }
        for (int64_t plane = first_plane; plane < last_plane; ++plane) {
          const int64_t lanes = least(kLanes, l.per_group - plane * kLanes);
          const int64_t channel = group % p.groups * l.per_group + plane * kLanes;  // within the batch item
          const auto* const source = r.columns.data + group / p.groups * r.columns.batch + channel * taps * row;
          const int64_t of_all = group * l.planes + plane;
          T* const sums = products.get() + (plane - first_plane) * r.count * size;
          fill_zero(rows + lanes * kTile, (kLanes - lanes) * kTile);
          load_tile<kLanes>(source + tap * row + first * step, taps * row, step, lanes, n, rows, tile);
          if (r.image != nullptr) {
            T* const target = r.image + (band * groups * l.planes + of_all) * l.plane;
            scatter<kLanes>(n, target, corner, pixel, weights, tile);
          }
          for (int64_t d = 0; d < r.count; ++d) {
            multiply<kLanes>(n, r.input + of_all * l.plane, corner, pixel, by_parameter[d], tile, sums + d * size);
          }
          // The sum of one tap, or of all.
          if (entries > 1 || r.multiples > 1 || tap + 1 == taps) {
            const int64_t entry = entries > 1 ? tap : 0;
            const int64_t at = ((plane * groups + group) * entries + entry) * r.count * r.multiples;
            T distance[kAxes];
            located.distances(distance);
            add_multiples<kLanes>(
                n, distance, r.count, r.multiples, r.multiples == 1 || tap == 0, sums, r.sums + at * positions + first,
                positions);
          }
        }
      }
    }
  }
}

// ---- instantiated for the axes and lanes of the call, unless the including file has tasks of its own

#if !defined(DDU_OTHER_TASKS)

#define DDU_LANES(function, ...) \
  switch (layout(p).lanes) { \
    case 1: \
      return function<__VA_ARGS__, 1> DDU_ARGUMENTS; \
    case 4: \
      return function<__VA_ARGS__, 4> DDU_ARGUMENTS; \
    default: \
      return function<__VA_ARGS__, 8> DDU_ARGUMENTS; \
  }

#define DDU_AXES(function) \
  switch (p.axes) { \
    case 1: \
      DDU_LANES(function, scalar_t, T, 1) \
    case 2: \
      DDU_LANES(function, scalar_t, T, 2) \
    default: \
      DDU_LANES(function, scalar_t, T, 3) \
  }

template <class scalar_t, class T>
void pack(const UnfoldParams& p, Strided<const scalar_t*> image, T* planes, int64_t begin, int64_t end) {
#define DDU_ARGUMENTS (p, image, planes, begin, end)
  DDU_LANES(pack_lanes, scalar_t, T)
#undef DDU_ARGUMENTS
}

template <class scalar_t, class T>
void unpack(const UnfoldParams& p, const T* planes, int64_t copies, scalar_t* image, int64_t begin, int64_t end) {
  const auto l = layout(p);
  const int64_t pixels = pixels_of(p);
  const Dense<scalar_t*> target = {image, p.channels * pixels, pixels, 1};
#define DDU_ARGUMENTS (p, planes, p.batch * p.groups * l.planes * l.plane, copies, target, begin, end)
  DDU_LANES(unpack_lanes, scalar_t, T)
#undef DDU_ARGUMENTS
}

template <class scalar_t, class T>
void sample(
    const UnfoldParams& p,
    int64_t together,
    const T* planes,
    const PositionsView<scalar_t, T>& positions,
    scalar_t* columns,
    int64_t begin,
    int64_t end) {
#define DDU_ARGUMENTS (p, together, planes, positions, columns, begin, end)
  DDU_AXES(sample_lanes)
#undef DDU_ARGUMENTS
}

template <class scalar_t, class T>
void reduce(const UnfoldParams& p, const Reduction<scalar_t, T>& reduction, int64_t begin, int64_t end) {
#define DDU_ARGUMENTS (p, reduction, begin, end)
  DDU_AXES(reduce_lanes)
#undef DDU_ARGUMENTS
}

#undef DDU_AXES
#undef DDU_LANES

}  // namespace

template <class scalar_t, class T>
constexpr Kernels<scalar_t, T> kTable = {
    &pack<scalar_t, T>, &unpack<scalar_t, T>, &sample<scalar_t, T>, &reduce<scalar_t, T>};

extern const Kernels<double, double> kDouble = kTable<double, double>;
extern const Kernels<float, float> kFloat = kTable<float, float>;
extern const Kernels<c10::Half, float> kHalf = kTable<c10::Half, float>;
extern const Kernels<c10::BFloat16, float> kBFloat16 = kTable<c10::BFloat16, float>;

#else
}  // namespace
#endif

}  // namespace ddu::cpu::DDU_CAPABILITY

#endif
