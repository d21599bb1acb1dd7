// SPDX-License-Identifier: MIT
// The CPU kernels for the sums of windows. Included by sums_<instruction set>.cpp, like kernels_impl.h.

#include <limits>

#define DDU_OTHER_TASKS
#include "kernels_impl.h"
#include "sums_kernels.h"

#if defined(DDU_CAPABILITY)

namespace ddu::cpu::DDU_CAPABILITY {

namespace {

// ---- tensors over the output grid <-> tiles

// Loads some channels at the positions, and zeros in the remaining lanes. rows: [kLanes, kTile], scratch space.
template <int kLanes, class S, class scalar_t, class T, int kAxes>
inline void load_lanes(
    const Strided<const S*>& view,
    const UnfoldParams& p,
    const Taps<scalar_t, T, kAxes>& located,
    int64_t channel,
    int64_t lanes,
    int64_t first,
    int64_t n,
    T* rows,
    T* tile) {
  int64_t row = view.axis[kMaxAxes - 1];
  bool in_a_row = view.channel == 1 && lanes == kLanes;
  for (int a = kMaxAxes - 2; a >= kMaxAxes - kAxes; --a) {
    row *= p.axis[a + 1].out_size;
    in_a_row = in_a_row && view.axis[a] == row;
  }
  if (in_a_row) {  // channels are adjacent
    const int64_t step = view.axis[kMaxAxes - 1];
    const S* const source = view.data + located.item() * view.batch + channel + first * step;
    for (int64_t k = 0; k < n; ++k) {
      for (int c = 0; c < kLanes; ++c) {
        tile[k * kLanes + c] = static_cast<T>(source[k * step + c]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < lanes; ++c) {
    located.load(view, channel + c, rows + c * kTile);
  }
  fill_zero(rows + lanes * kTile, (kLanes - lanes) * kTile);
  interleave<kLanes>(n, rows, kTile, tile);
}

// Stores n positions of `lanes` channels from a tile. Either the positions or the channels are contiguous.
template <int kLanes, class S, class T>
inline void store_lanes(
    const T* tile, int64_t lanes, int64_t n, T* rows, S* target, int64_t channel_stride, int64_t position_stride) {
  if (position_stride == 1) {
    store_tile<kLanes>(tile, lanes, n, rows, target, channel_stride);
    return;
  }
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t c = 0; c < lanes; ++c) {
      target[k * position_stride + c * channel_stride] = static_cast<S>(tile[k * kLanes + c]);
    }
  }
}

template <int kLanes, class T>
inline void add_lanes(const T* __restrict products, int64_t n, T* __restrict sum) {
  for (int64_t k = 0; k < n; ++k) {
    T total = 0;
    for (int c = 0; c < kLanes; ++c) {
      total += products[k * kLanes + c];
    }
    sum[k] += total;
  }
}

// ---- the factors of the samples, besides the query

// How a tap's factors are given: one for all lanes of a position, one per lane, or only for the chosen tap.
enum class By { kRow, kTile, kChoice };

template <class T, int kLanes>
struct Factors {
  By by;
  const T* values;  // rows [kTile], tiles [kTile, kLanes]; chosen taps, a tile
  T tap;
  T weight[kLanes];
};

// The factor of position k at some of the lanes, times a sample.
template <By by, int kLanes, class T>
inline typename Lanes<T, kLanes>::Type times(
    const typename Lanes<T, kLanes>::Type& value, const Factors<T, kLanes>& f, int64_t k, int c) {
  if constexpr (by == By::kRow) {
    return value * (f.values[k] * load<kLanes>(f.weight + c));
  } else if constexpr (by == By::kTile) {
    return value * (load<kLanes>(f.values + k * kLanes + c) * load<kLanes>(f.weight + c));
  } else {
    const auto chosen = load<kLanes>(f.values + k * kLanes + c) == f.tap;
    return chosen ? value : typename Lanes<T, kLanes>::Type{};
  }
}

// The same without the weight.
template <By by, int kLanes, class T>
inline typename Lanes<T, kLanes>::Type times_mask(
    const typename Lanes<T, kLanes>::Type& value, const Factors<T, kLanes>& f, int64_t k, int c) {
  if constexpr (by == By::kRow) {
    return value * f.values[k];
  } else if constexpr (by == By::kTile) {
    return value * load<kLanes>(f.values + k * kLanes + c);
  } else {
    return times<by, kLanes>(value, f, k, c);
  }
}

// ---- one tap of a tile, for kLanes channels

// Sums of a plane's channels: tiles [kTile, kLanes], except for the weight's. Null where not wanted.
template <class T, int kLanes>
struct PlaneSums {
  const T* query;
  T* by_query;
  T* by_mask;
  T* by_weight;     // [kLanes]
  T* by_positions;  // [count, kTile, kLanes]
  int64_t count;
};

template <By by, int kLanes, int kAxes, class T>
inline void add_products(
    int64_t n,
    const T* plane,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& value_weights,
    const Weights<T, kAxes>* term_weights,
    const Factors<T, kLanes>& f,
    const PlaneSums<T, kLanes>& sums) {
  constexpr int kStep = Lanes<T, kLanes>::kCount;
  if (sums.by_mask == nullptr && sums.by_weight == nullptr && sums.count == 0) {
    for (int64_t k = 0; k < n; ++k) {
      for (int c = 0; c < kLanes; c += kStep) {
        const auto value = interpolate<kLanes>(plane + pixel[k] * kLanes + c, rows, value_weights, k);
        T* const sum = sums.by_query + k * kLanes + c;
        store(load<kLanes>(sum) + times<by, kLanes>(value, f, k, c), sum);
      }
    }
    return;
  }
  const bool values = sums.by_query != nullptr || sums.by_mask != nullptr || sums.by_weight != nullptr;
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += kStep) {
      const int64_t at = k * kLanes + c;
      const T* const first = plane + pixel[k] * kLanes + c;
      const auto query = load<kLanes>(sums.query + at);
      if (values) {
        const auto value = interpolate<kLanes>(first, rows, value_weights, k);
        if (sums.by_query != nullptr) {
          store(load<kLanes>(sums.by_query + at) + times<by, kLanes>(value, f, k, c), sums.by_query + at);
        }
        if (sums.by_mask != nullptr) {
          store(load<kLanes>(sums.by_mask + at) + value * query * load<kLanes>(f.weight + c), sums.by_mask + at);
        }
        if (sums.by_weight != nullptr) {
          const auto part = times_mask<by, kLanes>(value * query, f, k, c);
          store(load<kLanes>(sums.by_weight + c) + part, sums.by_weight + c);
        }
      }
      for (int64_t r = 0; r < sums.count; ++r) {
        const auto value = interpolate<kLanes>(first, rows, term_weights[r], k);
        T* const sum = sums.by_positions + r * kTile * kLanes + at;
        store(load<kLanes>(sum) + times<by, kLanes>(value * query, f, k, c), sum);
      }
    }
  }
}

template <int kLanes, int kAxes, class T>
inline void add_products(
    int64_t n,
    const T* plane,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& value_weights,
    const Weights<T, kAxes>* term_weights,
    const Factors<T, kLanes>& f,
    const PlaneSums<T, kLanes>& sums) {
  switch (f.by) {
    case By::kRow:
      return add_products<By::kRow, kLanes>(n, plane, rows, pixel, value_weights, term_weights, f, sums);
    case By::kTile:
      return add_products<By::kTile, kLanes>(n, plane, rows, pixel, value_weights, term_weights, f, sums);
    default:
      return add_products<By::kChoice, kLanes>(n, plane, rows, pixel, value_weights, term_weights, f, sums);
  }
}

// Values at some of the lanes, of planes that are `pitch` apart and share the position's weights, `w`.
template <int kLanes, int kAxes, class T>
inline typename Lanes<T, kLanes>::Type interpolate_by(
    const T* first, const CornerRows<kAxes>& rows, const T (&w)[1 << kAxes]) {
  auto sum = w[0] * load<kLanes>(first) + w[1] * load<kLanes>(first + kLanes);
  for (int c = 2; c < 1 << kAxes; c += 2) {
    const T* const row = first + rows.offset[c / 2];
    sum = sum + w[c] * load<kLanes>(row) + w[c + 1] * load<kLanes>(row + kLanes);
  }
  return sum;
}

template <int kAxes, class T>
inline void weights_at(const Weights<T, kAxes>& weights, int64_t k, T (&w)[1 << kAxes]) {
  for (int c = 0; c < 1 << kAxes; ++c) {
    w[c] = weights.corner[c][k];
  }
}

// Adds samples times the mask and the weight, the rows and lanes of `f`, to the tiles of kPlanes planes.
template <int kPlanes, bool kMask, bool kWeight, int kLanes, int kAxes, class T>
inline void add_planes(
    int64_t n,
    const T* plane,
    int64_t pitch,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& weights,
    const Factors<T, kLanes>* f,
    T* sums) {
  for (int64_t k = 0; k < n; ++k) {
    T w[1 << kAxes];
    weights_at(weights, k, w);
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      for (int i = 0; i < kPlanes; ++i) {
        auto value = interpolate_by<kLanes, kAxes>(plane + i * pitch + pixel[k] * kLanes + c, rows, w);
        if constexpr (kMask) {
          value = value * f[i].values[k];
        }
        if constexpr (kWeight) {
          value = value * load<kLanes>(f[i].weight + c);
        }
        T* const sum = sums + i * kTile * kLanes + k * kLanes + c;
        store(load<kLanes>(sum) + value, sum);
      }
    }
  }
}

template <int kPlanes, int kLanes, int kAxes, class T>
inline void add_planes(
    bool mask,
    bool weight,
    int64_t n,
    const T* plane,
    int64_t pitch,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& weights,
    const Factors<T, kLanes>* f,
    T* sums) {
  if (mask && weight) {
    add_planes<kPlanes, true, true>(n, plane, pitch, rows, pixel, weights, f, sums);
  } else if (mask) {
    add_planes<kPlanes, true, false>(n, plane, pitch, rows, pixel, weights, f, sums);
  } else {
    add_planes<kPlanes, false, true>(n, plane, pitch, rows, pixel, weights, f, sums);
  }
}

// The products of kPlanes planes' samples with queries (tiles), times the weights, summed over the planes.
template <int kPlanes, bool kWeight, int kLanes, int kAxes, class T>
inline void multiply_planes(
    int64_t n,
    const T* plane,
    int64_t pitch,
    const CornerRows<kAxes>& rows,
    const int64_t* pixel,
    const Weights<T, kAxes>& weights,
    const Factors<T, kLanes>* f,
    const T* queries,
    T* sums) {
  for (int64_t k = 0; k < n; ++k) {
    T w[1 << kAxes];
    weights_at(weights, k, w);
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      typename Lanes<T, kLanes>::Type sum = {};
      for (int i = 0; i < kPlanes; ++i) {
        auto value = interpolate_by<kLanes, kAxes>(plane + i * pitch + pixel[k] * kLanes + c, rows, w);
        if constexpr (kWeight) {
          value = value * load<kLanes>(f[i].weight + c);
        }
        sum = sum + value * load<kLanes>(queries + i * kTile * kLanes + k * kLanes + c);
      }
      store(sum, sums + k * kLanes + c);
    }
  }
}

// Calls f with the number of planes as a constant.
template <class F>
inline void with_planes(int64_t planes, const F& f) {
  static_assert(kSumPlanes == 4);
  switch (planes) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    default:
      return f(std::integral_constant<int, 4>());
  }
}

// The query multiplied by the factors.
template <By by, int kLanes, class T>
inline void multiply_query(int64_t n, const T* query, const Factors<T, kLanes>& f, T* tile) {
  for (int64_t k = 0; k < n; ++k) {
    for (int c = 0; c < kLanes; c += Lanes<T, kLanes>::kCount) {
      store(times<by, kLanes>(load<kLanes>(query + k * kLanes + c), f, k, c), tile + k * kLanes + c);
    }
  }
}

// ---- the factors of a tap, plane by plane

template <class scalar_t, class T, int kAxes, int kLanes>
class FactorsOfTap {
 public:
  FactorsOfTap(const UnfoldParams& p, const Sums<scalar_t, T>& s, const Taps<scalar_t, T, kAxes>& located)
      : p_(p), s_(s), located_(located), taps_(taps_of(p)), per_mask_(p.channels / s.mask_groups) {
    for (auto& one : ones_) {
      one = 1;
    }
  }

  // The factors of `lanes` channels from `channel` on, kept in one of kSumPlanes slots. The slots before it must
  // already hold those of the same tap. chosen: a tile of the chosen taps, if any.
  const Factors<T, kLanes>& of(int64_t slot, int64_t tap, int64_t channel, int64_t lanes, int64_t n, const T* chosen) {
    auto& factors_ = all_[slot];
    for (int c = 0; c < kLanes; ++c) {
      factors_.weight[c] = s_.weight.data == nullptr ? T(1)
          : c < lanes                                ? s_.weight.data
                                                           [located_.item() * s_.weight.batch + (channel + c) * s_.weight.channel +
                                                            tap * s_.weight.axis[kMaxAxes - 1]]
                                                     : T(0);
    }
    if (s_.taps.data != nullptr) {
      factors_.by = By::kChoice;
      factors_.values = chosen;
      factors_.tap = static_cast<T>(tap);
    } else if (s_.mask.data == nullptr) {
      factors_.by = By::kRow;
      factors_.values = ones_;
    } else if (one_group(channel, lanes)) {
      factors_.by = By::kRow;
      if (slot > 0 && all_[slot - 1].by == By::kRow && group_of(channel) == group_of(channel - 1)) {
        factors_.values = all_[slot - 1].values;
      } else {
        factors_.values = row_[slot];
        located_.load(s_.mask, group_of(channel) * taps_ + tap, row_[slot]);
      }
    } else {
      factors_.by = By::kTile;
      factors_.values = tile_;
      for (int64_t c = 0; c < lanes; ++c) {
        located_.load(s_.mask, group_of(channel + c) * taps_ + tap, rows_ + c * kTile);
      }
      fill_zero(rows_ + lanes * kTile, (kLanes - lanes) * kTile);
      interleave<kLanes>(n, rows_, kTile, tile_);
    }
    return factors_;
  }

  int64_t group_of(int64_t channel) const { return channel / per_mask_; }

  // Whether the channels belong to the same mask group.
  bool one_group(int64_t channel, int64_t lanes) const { return group_of(channel) == group_of(channel + lanes - 1); }

 private:
  const UnfoldParams& p_;
  const Sums<scalar_t, T>& s_;
  const Taps<scalar_t, T, kAxes>& located_;
  const int64_t taps_;
  const int64_t per_mask_;
  Factors<T, kLanes> all_[kSumPlanes] = {};
  T ones_[kTile];
  T row_[kSumPlanes][kTile] = {};
  T rows_[kLanes * kTile] = {};
  T tile_[kTile * kLanes] = {};
};

// ---- the tasks

template <class scalar_t, class T, int kAxes, int kLanes>
void gather_lanes(const UnfoldParams& p, const Sums<scalar_t, T>& s, int64_t begin, int64_t end) {
  constexpr int64_t kSize = kTile * kLanes;
  const auto l = layout(p);
  const int64_t positions = positions_of(p);
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t taps = taps_of(p);
  const int64_t entries = positions_per_group(p);
  const bool values = s.by_query != nullptr || s.by_mask != nullptr || s.by_weight != nullptr;
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, s.positions);
  FactorsOfTap<scalar_t, T, kAxes, kLanes> factors(p, s, located);
  Weights<T, kAxes> value_weights;
  const std::unique_ptr<Weights<T, kAxes>[]> term_weights(new Weights<T, kAxes>[s.count]);
  int64_t pixel[kTile];
  T rows[kSize] = {};
  const std::unique_ptr<T[]> queries(new T[kSumPlanes * kSize]());
  const std::unique_ptr<T[]> choices(new T[kSumPlanes * kSize]());
  const std::unique_ptr<T[]> by_query(new T[kSumPlanes * kSize]);
  const std::unique_ptr<T[]> by_positions(new T[s.count * kSize]);
  T by_mask[kSize];
  T by_weight[kLanes];

  for (int64_t task = begin; task < end; ++task) {
    const int64_t item = task / s.strips;
    const int64_t strip = task % s.strips;
    for (int64_t tile = tiles * strip / s.strips; tile < tiles * (strip + 1) / s.strips; ++tile) {
      const int64_t first = tile * kTile;
      const int64_t n = least(kTile, positions - first);
      for (int64_t chunk = 0; chunk < p.groups * ceil_div(l.planes, kSumPlanes); ++chunk) {
        const int64_t group = chunk / ceil_div(l.planes, kSumPlanes);
        const int64_t first_plane = chunk % ceil_div(l.planes, kSumPlanes) * kSumPlanes;
        const int64_t planes = least(kSumPlanes, l.planes - first_plane);
        const int64_t row = item * p.groups + group;
        const auto channel_of = [&](int64_t i) { return group * l.per_group + (first_plane + i) * kLanes; };
        const auto lanes_of = [&](int64_t i) { return least(kLanes, l.per_group - (first_plane + i) * kLanes); };
        located.locate(row, first, n);
        for (int64_t i = 0; i < planes; ++i) {
          if (s.query.data != nullptr) {
            load_lanes<kLanes>(
                s.query, p, located, channel_of(i), lanes_of(i), first, n, rows, queries.get() + i * kSize);
          }
          if (s.taps.data != nullptr) {
            load_lanes<kLanes>(
                s.taps, p, located, channel_of(i), lanes_of(i), first, n, rows, choices.get() + i * kSize);
          }
        }
        bool together = s.count == 0 && s.by_weight == nullptr && (s.by_query == nullptr) != (s.by_mask == nullptr) &&
            s.taps.data == nullptr && (s.mask.data != nullptr || s.weight.data != nullptr || s.by_mask != nullptr);
        for (int64_t i = 0; i < planes; ++i) {
          together = together && factors.one_group(channel_of(i), lanes_of(i));
        }
        fill_zero(by_query.get(), planes * kSize);
        fill_zero(by_positions.get(), s.count * kSize);
        for (int64_t tap = 0; tap < taps; ++tap) {
          located.move_to(tap);
          located.corners(pixel);
          if (values) {
            located.weigh(p.term, value_weights);
          }
          for (int64_t r = 0; r < s.count; ++r) {
            located.weigh(s.terms[r], term_weights[r]);
          }
          const T* const first_input = s.input + (row * l.planes + first_plane) * l.plane;
          const auto sums_of = [&](int64_t mask_group) {
            return s.by_mask + ((item * s.mask_groups + mask_group) * taps + tap) * positions + first;
          };
          if (together) {  // all by rows, and no other result
            const Factors<T, kLanes>* f = nullptr;
            for (int64_t i = 0; i < planes; ++i) {
              f = &factors.of(i, tap, channel_of(i), lanes_of(i), n, nullptr) - i;
            }
            if (s.by_query != nullptr) {
              with_planes(planes, [&](auto number) {
                add_planes<decltype(number)::value, kLanes>(
                    s.mask.data != nullptr, s.weight.data != nullptr, n, first_input, l.plane, corner, pixel,
                    value_weights, f, by_query.get());
              });
              continue;
            }
            for (int64_t i = 0; i < planes;) {  // planes with the same mask group
              const int64_t mask_group = factors.group_of(channel_of(i));
              int64_t end_plane = i + 1;
              while (end_plane < planes && factors.group_of(channel_of(end_plane)) == mask_group) {
                ++end_plane;
              }
              with_planes(end_plane - i, [&](auto number) {
                constexpr int kPlanes = decltype(number)::value;
                if (s.weight.data != nullptr) {
                  multiply_planes<kPlanes, true, kLanes>(
                      n, first_input + i * l.plane, l.plane, corner, pixel, value_weights, f + i,
                      queries.get() + i * kSize, by_mask);
                } else {
                  multiply_planes<kPlanes, false, kLanes>(
                      n, first_input + i * l.plane, l.plane, corner, pixel, value_weights, f + i,
                      queries.get() + i * kSize, by_mask);
                }
              });
              add_lanes<kLanes>(by_mask, n, sums_of(mask_group));
              i = end_plane;
            }
            continue;
          }
          fill_zero(by_mask, kSize);
          for (int64_t i = 0; i < planes; ++i) {
            const int64_t channel = channel_of(i);
            const int64_t lanes = lanes_of(i);
            fill_zero(by_weight, kLanes);
            const PlaneSums<T, kLanes> sums = {
                queries.get() + i * kSize,
                s.by_query == nullptr ? nullptr : by_query.get() + i * kSize,
                s.by_mask == nullptr ? nullptr : by_mask,
                s.by_weight == nullptr ? nullptr : by_weight,
                by_positions.get(),
                s.count};
            const auto& f = factors.of(i, tap, channel, lanes, n, choices.get() + i * kSize);
            add_products<kLanes>(
                n, first_input + i * l.plane, corner, pixel, value_weights, term_weights.get(), f, sums);
            for (int64_t c = 0; s.by_weight != nullptr && c < lanes; ++c) {
              s.by_weight[((item * s.strips + strip) * p.channels + channel + c) * taps + tap] += by_weight[c];
            }
            if (s.by_mask != nullptr) {
              if (!factors.one_group(channel, lanes)) {
                for (int64_t c = 0; c < lanes; ++c) {
                  T* const sum = sums_of(factors.group_of(channel + c));
                  for (int64_t k = 0; k < n; ++k) {
                    sum[k] += by_mask[k * kLanes + c];
                  }
                }
                fill_zero(by_mask, kSize);
              } else if (
                  i + 1 == planes || factors.group_of(channel) != factors.group_of(channel + kLanes) ||
                  !factors.one_group(channel + kLanes, lanes_of(i + 1))) {
                add_lanes<kLanes>(by_mask, n, sums_of(factors.group_of(channel)));
                fill_zero(by_mask, kSize);
              }
            }
          }
          // The sum of one tap, or of all.
          if (s.count > 0 && (entries > 1 || s.multiples > 1 || tap + 1 == taps)) {
            const int64_t entry = entries > 1 ? tap : 0;
            T distance[kAxes];
            located.distances(distance);
            add_multiples<kLanes>(
                n, distance, s.count, s.multiples, /*store=*/false, by_positions.get(),
                s.by_positions + (row * entries + entry) * s.count * s.multiples * positions + first, positions);
          }
        }
        for (int64_t i = 0; s.by_query != nullptr && i < planes; ++i) {
          store_lanes<kLanes>(
              by_query.get() + i * kSize, lanes_of(i), n, rows,
              s.by_query + item * s.batch + channel_of(i) * s.channel + first * s.position, s.channel, s.position);
        }
      }
    }
  }
}

template <class scalar_t, class T, int kAxes, int kLanes>
void scatter_lanes(const UnfoldParams& p, const Sums<scalar_t, T>& s, int64_t begin, int64_t end) {
  constexpr int64_t kSize = kTile * kLanes;
  const auto l = layout(p);
  const int64_t groups = p.batch * p.groups;
  const int64_t positions = positions_of(p);
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t taps = taps_of(p);
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, s.positions);
  FactorsOfTap<scalar_t, T, kAxes, kLanes> factors(p, s, located);
  Weights<T, kAxes> weights;
  int64_t pixel[kTile];
  T rows[kSize] = {};
  T query[kSize] = {};
  T chosen[kSize] = {};
  T product[kSize] = {};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t band = task % s.bands;
    const int64_t plane = task / s.bands;  // among all
    const int64_t group = plane / l.planes;
    const int64_t first_lane = plane % l.planes * kLanes;
    const int64_t lanes = least(kLanes, l.per_group - first_lane);
    const int64_t channel = group % p.groups * l.per_group + first_lane;  // within the batch item
    T* const target = s.image + (band * groups * l.planes + plane) * l.plane;
    for (int64_t t = tiles * band / s.bands; t < tiles * (band + 1) / s.bands; ++t) {
      const int64_t first = t * kTile;
      const int64_t n = least(kTile, positions - first);
      located.locate(group, first, n);
      load_lanes<kLanes>(s.query, p, located, channel, lanes, first, n, rows, query);
      if (s.taps.data != nullptr) {
        load_lanes<kLanes>(s.taps, p, located, channel, lanes, first, n, rows, chosen);
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        const auto& f = factors.of(0, tap, channel, lanes, n, chosen);
        if (f.by == By::kRow) {
          multiply_query<By::kRow, kLanes>(n, query, f, product);
        } else if (f.by == By::kTile) {
          multiply_query<By::kTile, kLanes>(n, query, f, product);
        } else {
          multiply_query<By::kChoice, kLanes>(n, query, f, product);
        }
        located.move_to(tap);
        located.corners(pixel);
        located.weigh(p.term, weights);
        scatter<kLanes>(n, target, corner, pixel, weights, product);
      }
    }
  }
}

template <class scalar_t, class T, int kAxes, int kLanes>
void pool_lanes(const UnfoldParams& p, const Pool<scalar_t, T>& pool, int64_t begin, int64_t end) {
  constexpr T kLeast = -std::numeric_limits<T>::infinity();
  constexpr int64_t kSize = kTile * kLanes;
  const auto l = layout(p);
  const int64_t positions = positions_of(p);
  const int64_t tiles = ceil_div(positions, kTile);
  const int64_t taps = taps_of(p);
  const int64_t chunks = ceil_div(l.planes, kSumPlanes);
  const auto corner = corner_rows<kAxes, kLanes>(p);
  Taps<scalar_t, T, kAxes> located(p, pool.positions);
  Weights<T, kAxes> weights;
  int64_t pixel[kTile];
  bool counts[kTile];
  T rows[kSize] = {};
  const std::unique_ptr<T[]> largest(new T[kSumPlanes * kSize]());
  const std::unique_ptr<T[]> taken(new T[kSumPlanes * kSize]());  // exact: no window has 2^24 taps
  for (int64_t k = 0; k < kTile; ++k) {
    counts[k] = true;
  }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % tiles * kTile;
    const int64_t n = least(kTile, positions - first);
    const int64_t row = task / tiles / chunks;  // among the batch's groups
    const int64_t first_plane = task / tiles % chunks * kSumPlanes;
    const int64_t planes = least(kSumPlanes, l.planes - first_plane);
    located.locate(row, first, n);
    for (int64_t at = 0; at < planes * kSize; ++at) {
      largest[at] = kLeast;
      taken[at] = -1;
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      located.move_to(tap);
      located.corners(pixel);
      located.weigh(p.term, weights);
      if (pool.ignore) {
        located.inside(counts);
      }
      for (int64_t i = 0; i < planes; ++i) {
        const T* const plane = pool.input + (row * l.planes + first_plane + i) * l.plane;
        T* const most = largest.get() + i * kSize;
        T* const tap_of = taken.get() + i * kSize;
        for (int64_t k = 0; k < n; ++k) {
          for (int c = 0; c < kLanes && counts[k]; c += Lanes<T, kLanes>::kCount) {
            const int64_t at = k * kLanes + c;
            const auto value = interpolate<kLanes>(plane + pixel[k] * kLanes + c, corner, weights, k);
            const auto before = load<kLanes>(most + at);
            const auto tap_before = load<kLanes>(tap_of + at);
            const auto larger = (value > before) | (value != value) | (tap_before < T(0));
            store(larger ? value : before, most + at);
            store(larger ? typename Lanes<T, kLanes>::Type{} + static_cast<T>(tap) : tap_before, tap_of + at);
          }
        }
      }
    }
    for (int64_t i = 0; i < planes; ++i) {
      const int64_t lanes = least(kLanes, l.per_group - (first_plane + i) * kLanes);
      const int64_t channel = row % p.groups * l.per_group + (first_plane + i) * kLanes;
      const int64_t offset = row / p.groups * pool.batch + channel * pool.channel + first * pool.position;
      store_lanes<kLanes>(largest.get() + i * kSize, lanes, n, rows, pool.values + offset, pool.channel, pool.position);
      store_lanes<kLanes>(taken.get() + i * kSize, lanes, n, rows, pool.taps + offset, pool.channel, pool.position);
    }
  }
}

// ---- instantiated for the axes and lanes of the call

#define DDU_LANES(function, kAxes) \
  switch (layout(p).lanes) { \
    case 1: \
      return function<scalar_t, T, kAxes, 1>(p, call, begin, end); \
    case 4: \
      return function<scalar_t, T, kAxes, 4>(p, call, begin, end); \
    default: \
      return function<scalar_t, T, kAxes, 8>(p, call, begin, end); \
  }

#define DDU_AXES(function) \
  switch (p.axes) { \
    case 1: \
      DDU_LANES(function, 1) \
    case 2: \
      DDU_LANES(function, 2) \
    default: \
      DDU_LANES(function, 3) \
  }

template <class scalar_t, class T>
void gather(const UnfoldParams& p, const Sums<scalar_t, T>& call, int64_t begin, int64_t end) {
  DDU_AXES(gather_lanes)
}

template <class scalar_t, class T>
void scatter(const UnfoldParams& p, const Sums<scalar_t, T>& call, int64_t begin, int64_t end) {
  DDU_AXES(scatter_lanes)
}

template <class scalar_t, class T>
void pool(const UnfoldParams& p, const Pool<scalar_t, T>& call, int64_t begin, int64_t end) {
  DDU_AXES(pool_lanes)
}

#undef DDU_AXES
#undef DDU_LANES

}  // namespace

template <class scalar_t, class T>
constexpr SumsKernels<scalar_t, T> kSumsTable = {&gather<scalar_t, T>, &scatter<scalar_t, T>, &pool<scalar_t, T>};

extern const SumsKernels<double, double> kSumsDouble = kSumsTable<double, double>;
extern const SumsKernels<float, float> kSumsFloat = kSumsTable<float, float>;
extern const SumsKernels<c10::Half, float> kSumsHalf = kSumsTable<c10::Half, float>;
extern const SumsKernels<c10::BFloat16, float> kSumsBFloat16 = kSumsTable<c10::BFloat16, float>;

}  // namespace ddu::cpu::DDU_CAPABILITY

#endif
