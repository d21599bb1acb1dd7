// SPDX-License-Identifier: MIT
// The CPU kernels (NOTE [ CPU kernels ]). Included by kernels_<instruction set>.cpp, each of which defines
// DDU_CAPABILITY, a namespace, and has included everything below before it turned its instruction set on.

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <memory>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../math/bilinear.h"
#include "../math/geometry.h"
#include "kernels.h"

#if defined(DDU_CAPABILITY)

namespace ddu::cpu::DDU_CAPABILITY {

namespace {

// Instead of <algorithm>, whose templates have one name for all instruction sets.

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

// n <= kTile elements of a row, converted.
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

// The same for rows of any type and strides, of which the first `lanes` are there. rows: [kLanes, kTile], zeros where
// no row is.
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

// The same for contiguous rows of any type, of which the first `lanes` are wanted. rows: [kLanes, kTile], to work in.
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

template <class T>
struct Weights {
  T nw[kTile], ne[kTile], sw[kTile], se[kTile];
};

// Where the taps of a tile lie: move to one of them, then ask. Taps of a row come one after the other; so many of them
// are kept that windows of the usual sizes are located once for a tile, and no kernel size makes it large.
template <class T>
class Taps {
 public:
  explicit Taps(const UnfoldParams& p)
      : p_(p),
        narrow_(fits_int32(p.h) && fits_int32(p.w)),
        kept_(least(p.w.kernel, kMaxKept)),
        y_(new Located),
        x_(new Located[kept_]) {}

  // The n <= kTile positions from `first` on. rates: [rates, L].
  void locate(const T* rates, int64_t first, int64_t n) {
    const int64_t positions = p_.h.out_size * p_.w.out_size;
    const T* const rate_h = rates + first;
    const T* const rate_w = rate_h + (p_.rates - 1) * positions;
    n_ = n;
    int64_t i = first / p_.w.out_size;
    int64_t j = first % p_.w.out_size;
    for (int64_t k = 0; k < n; ++k) {
      rate_h_[k] = rate_h[k];
      rate_w_[k] = rate_w[k];
      // Where a rate is not finite, its difference to itself is NaN. With NaN weights and no neighbours, NaN is what is
      // read, and what is added to the image falls into the border.
      unit_[k] = T(1) + (rate_h_[k] - rate_h_[k]) + (rate_w_[k] - rate_w_[k]);
      centre_h_[k] = centre_pixel(p_.h, i, p_.aligned);
      centre_w_[k] = centre_pixel(p_.w, j, p_.aligned);
      if (++j == p_.w.out_size) {
        j = 0;
        ++i;
      }
    }
    row_ = -1;
    first_kept_ = p_.w.kernel;
  }

  void move_to(int64_t m, int64_t n) {
    if (m != row_) {
      locate_tap(p_.h, m, centre_h_, rate_h_, padded(p_.w.size), *y_);
      row_ = m;
    }
    if (n < first_kept_ || n >= first_kept_ + kept_) {
      first_kept_ = n;
      for (int64_t x = n; x < least(n + kept_, p_.w.kernel); ++x) {
        locate_tap(p_.w, x, centre_w_, rate_w_, 1, x_[x - n]);
      }
    }
    column_ = n;
  }

  // The pixel of a padded plane that is the nw corner, for every position.
  void corners(int64_t* __restrict nw) const {
    const int64_t* const y = y_->offset;
    const int64_t* const x = x_[column_ - first_kept_].offset;
    for (int64_t k = 0; k < n_; ++k) {
      nw[k] = y[k] + x[k];
    }
  }

  void weigh(const Term& term, Weights<T>& weights) const {
    constexpr Term kValue = {{{1, 0}, {0, 0}}};
    if (term.count[0][0] == 1) {
      weigh_as(kValue, weights);
    } else {
      weigh_as(term, weights);
    }
  }

 private:
  static constexpr int64_t kMaxKept = 32;

  struct Located {
    int64_t offset[kTile];
    T fraction[kTile];
  };

  void locate_tap(
      const Axis<int64_t>& axis, int64_t tap, const int64_t* centre, const T* rate, int64_t pitch, Located& located) {
    if (narrow_) {
      locate_tap_as<int32_t>(axis, tap, centre, rate, pitch, located);
    } else {
      locate_tap_as<int64_t>(axis, tap, centre, rate, pitch, located);
    }
  }

  template <class Index>
  void locate_tap_as(
      const Axis<int64_t>& axis,
      int64_t tap,
      const int64_t* __restrict centre,
      const T* __restrict rate,
      int64_t pitch,
      Located& located) {
    const T slope = tap_slope<T>(axis, tap);
    const T fraction = centre_fraction<T>(axis, p_.aligned);
    const Index size = static_cast<Index>(axis.size);
    for (int64_t k = 0; k < n_; ++k) {
      const auto at = neighbours<T, Index>(size, static_cast<Index>(centre[k]), fraction, slope, rate[k]);
      located.offset[k] = (at.pixel + kBorderLow) * pitch;
      located.fraction[k] = at.fraction;
    }
  }

  void weigh_as(const Term& term, Weights<T>& weights) const {
    const T slope_h = tap_slope<T>(p_.h, row_);
    const T slope_w = tap_slope<T>(p_.w, column_);
    const T* const y = y_->fraction;
    const T* const x = x_[column_ - first_kept_].fraction;
    for (int64_t k = 0; k < n_; ++k) {
      const auto corner = corner_weights(axis_weights(y[k], slope_h), axis_weights(x[k], slope_w), term);
      weights.nw[k] = unit_[k] * corner.nw;
      weights.ne[k] = unit_[k] * corner.ne;
      weights.sw[k] = unit_[k] * corner.sw;
      weights.se[k] = unit_[k] * corner.se;
    }
  }

  const UnfoldParams& p_;
  const bool narrow_;
  const int64_t kept_;      // taps of a row whose places are in x_
  int64_t n_ = 0;           // positions
  int64_t row_ = 0;         // of the tap
  int64_t column_ = 0;      // of the tap
  int64_t first_kept_ = 0;  // the column of x_[0]
  int64_t centre_h_[kTile];
  int64_t centre_w_[kTile];
  T rate_h_[kTile];
  T rate_w_[kTile];
  T unit_[kTile];                 // 1, or NaN where a rate is not finite
  std::unique_ptr<Located> y_;    // offsets in pixels of a plane along the height
  std::unique_ptr<Located[]> x_;  // and along the width
};

// ---- one tap of a tile, kLanes channels. pitch: elements from one row of a plane to the next.

// Numbers of consecutive lanes as one value, in registers of whatever width the instruction set has; at most 32 bytes,
// for what is wider the compiler may take through memory.
template <class T, int kLanes>
struct Lanes {
  static constexpr int kCount = kLanes * sizeof(T) <= 32 ? kLanes : 32 / sizeof(T);
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

// The weighted sum of the corners of position k, at some of the lanes.
template <int kLanes, class T>
inline typename Lanes<T, kLanes>::Type interpolate(const T* north, int64_t pitch, const Weights<T>& w, int64_t k) {
  const T* const south = north + pitch;
  return w.nw[k] * load<kLanes>(north) + w.ne[k] * load<kLanes>(north + kLanes) + w.sw[k] * load<kLanes>(south) +
      w.se[k] * load<kLanes>(south + kLanes);
}

template <int kLanes, class T>
inline void gather(int64_t n, const T* plane, int64_t pitch, const int64_t* nw, const Weights<T>& w, T* tile) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      store(interpolate<kLanes>(plane + nw[k] * kLanes + c, pitch, w, k), tile + k * kLanes + c);
    }
  }
}

template <int kLanes, class T>
inline void scatter(int64_t n, T* plane, int64_t pitch, const int64_t* nw, const Weights<T>& w, const T* tile) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      T* const north = plane + nw[k] * kLanes + c;
      T* const south = north + pitch;
      const auto value = load<kLanes>(tile + k * kLanes + c);
      store(load<kLanes>(north) + w.nw[k] * value, north);
      store(load<kLanes>(north + kLanes) + w.ne[k] * value, north + kLanes);
      store(load<kLanes>(south) + w.sw[k] * value, south);
      store(load<kLanes>(south + kLanes) + w.se[k] * value, south + kLanes);
    }
  }
}

// sums: [kTile, kLanes]
template <int kLanes, class T>
inline void multiply(
    int64_t n, const T* plane, int64_t pitch, const int64_t* nw, const Weights<T>& w, const T* tile, T* sums) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      T* const sum = sums + k * kLanes + c;
      const auto sampled = interpolate<kLanes>(plane + nw[k] * kLanes + c, pitch, w, k);
      store(load<kLanes>(sum) + load<kLanes>(tile + k * kLanes + c) * sampled, sum);
    }
  }
}

// ---- the tasks

template <class scalar_t, class T, int kLanes>
void pack_lanes(const UnfoldParams& p, Strided<const scalar_t*> image, T* planes, int64_t begin, int64_t end) {
  const auto l = layout(p);
  const int64_t height = padded(p.h.size);
  const int64_t width = padded(p.w.size);
  T rows[kLanes * kTile] = {};
  T tile[kTile * kLanes] = {};
  for (int64_t task = begin; task < end; ++task) {
    T* const target = planes + task * width * kLanes;
    const int64_t y = task % height - kBorderLow;
    const int64_t plane = task / height % l.planes;
    const int64_t group = task / height / l.planes % p.groups;
    const int64_t b = task / height / l.planes / p.groups;
    if (y < 0 || y >= p.h.size) {
      fill_zero(target, width * kLanes);
      continue;
    }
    fill_zero(target, kBorderLow * kLanes);
    fill_zero(target + (kBorderLow + p.w.size) * kLanes, kBorderHigh * kLanes);
    const int64_t first = plane * kLanes;
    const int64_t lanes = least(kLanes, l.per_group - first);
    const auto* const source =
        image.data + b * image.stride[0] + (group * l.per_group + first) * image.stride[1] + y * image.stride[2];
    fill_zero(rows, kLanes * kTile);
    for (int64_t x = 0; x < p.w.size; x += kTile) {
      const int64_t n = least(kTile, p.w.size - x);
      load_tile<kLanes>(source + x * image.stride[3], image.stride[1], image.stride[3], lanes, n, rows, tile);
      copy(tile, n * kLanes, target + (kBorderLow + x) * kLanes);
    }
  }
}

template <class scalar_t, class T, int kLanes>
void unpack_lanes(const UnfoldParams& p, const T* planes, int64_t copies, scalar_t* image, int64_t begin, int64_t end) {
  const auto l = layout(p);
  const int64_t set = p.batch * p.groups * l.planes * l.plane;
  T rows[kLanes * kTile] = {};
  T tile[kTile * kLanes] = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t y = task % p.h.size;
    const int64_t plane = task / p.h.size;  // of all
    const int64_t group = plane / l.planes;
    const int64_t first = plane % l.planes * kLanes;
    const int64_t lanes = least(kLanes, l.per_group - first);
    const T* const source = planes + plane * l.plane + ((y + kBorderLow) * padded(p.w.size) + kBorderLow) * kLanes;
    auto* const target = image + ((group * l.per_group + first) * p.h.size + y) * p.w.size;
    for (int64_t x = 0; x < p.w.size; x += kTile) {
      const int64_t n = least(kTile, p.w.size - x);
      copy(source + x * kLanes, n * kLanes, tile);
      for (int64_t copy = 1; copy < copies; ++copy) {
        const T* const more = source + copy * set + x * kLanes;
        for (int64_t k = 0; k < n * kLanes; ++k) {
          tile[k] += more[k];
        }
      }
      store_tile<kLanes>(tile, lanes, n, rows, target + x, p.h.size * p.w.size);
    }
  }
}

template <class scalar_t, class T, int kLanes>
void sample_lanes(
    const UnfoldParams& p, const T* planes, const T* rates, scalar_t* columns, int64_t begin, int64_t end) {
  const auto l = layout(p);
  const int64_t positions = p.h.out_size * p.w.out_size;
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t chunks = ceil_div(l.planes, kSamplePlanes);
  const int64_t taps = p.h.kernel * p.w.kernel;
  const int64_t pitch = padded(p.w.size) * kLanes;
  Taps<T> located(p);
  Weights<T> weights;
  int64_t nw[kTile];
  T tile[kTile * kLanes] = {};
  T rows[kLanes * kTile] = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % tiles * kTile;
    const int64_t n = least(kTile, positions - first);
    const int64_t chunk = task / tiles % chunks;
    const int64_t group = task / tiles / chunks;
    located.locate(rates + group * p.rates * positions, first, n);
    for (int64_t tap = 0; tap < taps; ++tap) {
      located.move_to(tap / p.w.kernel, tap % p.w.kernel);
      located.corners(nw);
      located.weigh(p.term, weights);
      const int64_t last = least((chunk + 1) * kSamplePlanes, l.planes);
      for (int64_t plane = chunk * kSamplePlanes; plane < last; ++plane) {
        gather<kLanes>(n, planes + (group * l.planes + plane) * l.plane, pitch, nw, weights, tile);
        const int64_t lanes = least(kLanes, l.per_group - plane * kLanes);
        const int64_t channel = group * l.per_group + plane * kLanes;  // of all
        store_tile<kLanes>(
            tile, lanes, n, rows, columns + (channel * taps + tap) * positions + first, taps * positions);
      }
    }
  }
}

template <class scalar_t, class T, int kLanes>
void reduce_lanes(const UnfoldParams& p, const Reduction<scalar_t, T>& r, int64_t begin, int64_t end) {
  const auto l = layout(p);
  const int64_t groups = p.batch * p.groups;
  const int64_t positions = p.h.out_size * p.w.out_size;
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t taps = p.h.kernel * p.w.kernel;
  const int64_t pitch = padded(p.w.size) * kLanes;
  Taps<T> located(p);
  Weights<T> weights;
  int64_t nw[kTile];
  T rows[kLanes * kTile] = {};
  T tile[kTile * kLanes] = {};
  const std::unique_ptr<T[]> products(new T[r.count * kTile * kLanes]);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t band = task % r.bands;
    const int64_t plane = task / r.bands;  // of all
    const int64_t group = plane / l.planes;
    const int64_t first_lane = plane % l.planes * kLanes;
    const int64_t lanes = least(kLanes, l.per_group - first_lane);
    const int64_t channel = group % p.groups * l.per_group + first_lane;  // of the batch item
    const auto* const source =
        r.columns.data + group / p.groups * r.columns.stride[0] + channel * taps * r.columns.stride[1];
    T* const target = r.image == nullptr ? nullptr : r.image + (band * groups * l.planes + plane) * l.plane;
    const T* const factor = r.input == nullptr ? nullptr : r.input + plane * l.plane;
    fill_zero(rows + lanes * kTile, (kLanes - lanes) * kTile);
    for (int64_t t = tiles * band / r.bands; t < tiles * (band + 1) / r.bands; ++t) {
      const int64_t first = t * kTile;
      const int64_t n = least(kTile, positions - first);
      located.locate(r.rates + group * p.rates * positions, first, n);
      fill_zero(products.get(), r.count * kTile * kLanes);
      for (int64_t tap = 0; tap < taps; ++tap) {
        load_tile<kLanes>(
            source + tap * r.columns.stride[1] + first * r.columns.stride[3], taps * r.columns.stride[1],
            r.columns.stride[3], lanes, n, rows, tile);
        located.move_to(tap / p.w.kernel, tap % p.w.kernel);
        located.corners(nw);
        if (target != nullptr) {
          located.weigh(*r.splat, weights);
          scatter<kLanes>(n, target, pitch, nw, weights, tile);
        }
        for (int64_t d = 0; d < r.count; ++d) {
          located.weigh(r.dot[d], weights);
          multiply<kLanes>(n, factor, pitch, nw, weights, tile, products.get() + d * kTile * kLanes);
        }
      }
      for (int64_t d = 0; d < r.count; ++d) {
        T* const sum = r.sums + ((plane % l.planes * groups + group) * r.count + d) * positions + first;
        const T* const product = products.get() + d * kTile * kLanes;
        for (int64_t k = 0; k < n; ++k) {
          T total = 0;
          for (int c = 0; c < kLanes; ++c) {
            total += product[k * kLanes + c];
          }
          sum[k] = total;
        }
      }
    }
  }
}

// ---- with the lanes of the call's layout

#define DDU_LANES(function, ...) \
  switch (layout(p).lanes) { \
    case 1: \
      return function<scalar_t, T, 1>(__VA_ARGS__); \
    case 4: \
      return function<scalar_t, T, 4>(__VA_ARGS__); \
    default: \
      return function<scalar_t, T, 8>(__VA_ARGS__); \
  }

template <class scalar_t, class T>
void pack(const UnfoldParams& p, Strided<const scalar_t*> image, T* planes, int64_t begin, int64_t end) {
  DDU_LANES(pack_lanes, p, image, planes, begin, end)
}

template <class scalar_t, class T>
void unpack(const UnfoldParams& p, const T* planes, int64_t copies, scalar_t* image, int64_t begin, int64_t end) {
  DDU_LANES(unpack_lanes, p, planes, copies, image, begin, end)
}

template <class scalar_t, class T>
void sample(const UnfoldParams& p, const T* planes, const T* rates, scalar_t* columns, int64_t begin, int64_t end) {
  DDU_LANES(sample_lanes, p, planes, rates, columns, begin, end)
}

template <class scalar_t, class T>
void reduce(const UnfoldParams& p, const Reduction<scalar_t, T>& reduction, int64_t begin, int64_t end) {
  DDU_LANES(reduce_lanes, p, reduction, begin, end)
}

#undef DDU_LANES

}  // namespace

template <class scalar_t, class T>
constexpr Kernels<scalar_t, T> kTable = {
    &pack<scalar_t, T>, &unpack<scalar_t, T>, &sample<scalar_t, T>, &reduce<scalar_t, T>};

extern const Kernels<double, double> kDouble = kTable<double, double>;
extern const Kernels<float, float> kFloat = kTable<float, float>;
extern const Kernels<c10::Half, float> kHalf = kTable<c10::Half, float>;
extern const Kernels<c10::BFloat16, float> kBFloat16 = kTable<c10::BFloat16, float>;

}  // namespace ddu::cpu::DDU_CAPABILITY

#endif
