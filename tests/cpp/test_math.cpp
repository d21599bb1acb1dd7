// SPDX-License-Identifier: MIT
// csrc/math and csrc/params.h by themselves: C++17, no torch.
//
//     g++ -std=c++17 -I csrc tests/cpp/test_math.cpp -o test_math && ./test_math
//
// `--list` prints the names of the cases, names as arguments run those. tests/cpp/test_cpp.py shows each as a test of
// its own and reads the names from this file: a case is a line that begins with TEST.
//
// What is expected comes from formulas in exact arithmetic: whole numbers of 128 bits that count halves, or 2^-60ths.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "math/axis.h"
#include "math/interpolation.h"
#include "math/positions.h"
#include "params.h"

namespace {

using namespace ddu;

// ---- a test framework

struct Case {
  const char* name;
  void (*run)();
};

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registered {
  Registered(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

#define TEST(name) \
  void name(); \
  const Registered registered_##name(#name, name); \
  void name()

int failures = 0;  // of the case that runs

template <class... Values>
void check(bool holds, int line, const char* condition, const char* names, const Values&... values) {
  constexpr int kShown = 5;
  if (!holds && ++failures <= kShown) {
    std::cout << __FILE__ << ":" << line << ": " << condition << ", where (" << names << ") = (";
    const char* separator = "";
    ((std::cout << separator << values, separator = ", "), ...);
    std::cout << ")\n";
  }
}

// CHECK(condition, values to print where it fails...)
#define CHECK(condition, ...) check((condition), __LINE__, #condition, #__VA_ARGS__, __VA_ARGS__)

// ---- what the headers promise to their users, at compile time

template <class... Types>
constexpr bool kPlainData =
    ((std::is_trivially_copyable_v<Types> && std::is_standard_layout_v<Types> && std::is_aggregate_v<Types>) && ...);

// Kernels get them by value, from host to device.
static_assert(kPlainData<Axis<int64_t>, Term, Params<int64_t>, UnfoldParams>);
static_assert(kPlainData<Neighbours<float>, Neighbours<double, int32_t>, AxisWeights<float>, CornerWeights<2, double>>);

constexpr Term kTerm = {{1, 0, 0, 2}, {}};
static_assert(kTerm.count[3] == 2 && axis_bit(0) == 4 && axis_bit(1) == 2 && axis_bit(2) == 1);

// Every pixel that neighbours() may answer has an address in a padded row, and the one after it has, too.
static_assert(padded(7) == 10 && kNoPixel + kBorderLow == 0 && -1 + kBorderLow > 0);
static_assert(kNoPixel + 1 + kBorderLow < kBorderLow && 7 - 1 + 1 + kBorderLow < padded(7));

// ---- exact arithmetic

__extension__ typedef __int128 Exact;

constexpr int kScale = 60;  // an Exact position counts 2^-60ths of a pixel

// What lies between 2^-36 and 2^20 fits whole, in float; from 2^-7 on in double.
template <class T>
Exact exact(T value) {
  int exponent = 0;
  const T mantissa = std::frexp(value, &exponent);
  constexpr int kDigits = std::numeric_limits<T>::digits;
  const auto digits = static_cast<int64_t>(std::ldexp(mantissa, kDigits));
  const int shift = exponent - kDigits + kScale;
  CHECK(value == 0 || (shift >= 0 && exponent <= 21), value);
  return value == 0 ? Exact(0) : Exact(digits) * (Exact(1) << shift);
}

int64_t exact_floor(Exact value) {
  const Exact one = Exact(1) << kScale;
  return static_cast<int64_t>(value >= 0 ? value / one : -((-value + one - 1) / one));
}

// Rounded once.
template <class T>
T rounded(Exact value) {
  return std::ldexp(static_cast<T>(value), -kScale);
}

// SPEC's position of a tap less the whole pixels i * s - p, in halves where the rate is a whole number.
int64_t twice_position(const Axis<int64_t>& axis, int64_t tap, int64_t rate, bool aligned) {
  return (aligned ? axis.dilation * (axis.kernel - 1) : 0) + (2 * tap - (axis.kernel - 1)) * axis.dilation * rate;
}

// The whole pixels of a window's centre.
int64_t centre_pixel(const Axis<int64_t>& axis, int64_t out_index, bool aligned) {
  return out_index * axis.stride + first_pixel(axis, Source::kRates, aligned);
}

template <class T, class Index>
Neighbours<T, Index> among_zeros(Index size, Index base, T base_fraction, T slope, T parameter) {
  const auto at = neighbours<T, Index>(size, base, base_fraction, slope, parameter, PaddingMode::kZeros);
  CHECK(at.direction == 1, at.direction);
  return at;
}

// Axes of many kinds: even and odd kernels, dilations, strides and paddings.
std::vector<Axis<int64_t>> axes() {
  std::vector<Axis<int64_t>> result;
  for (const int64_t kernel : {1, 2, 3, 4, 5, 8}) {
    for (const int64_t dilation : {1, 2, 3, 6}) {
      for (const int64_t stride : {1, 2, 3}) {
        for (const int64_t padding : {0, 1, 5}) {
          result.push_back({9, 4, kernel, stride, padding, dilation});
        }
      }
    }
  }
  return result;
}

template <class T, class Index>
void check_against_exact(Index size, Index centre, T fraction, int64_t twice_slope, T rate) {
  const T slope = static_cast<T>(twice_slope) / 2;
  const Exact offset = (Exact(twice_slope) * exact(rate) + exact(2 * fraction)) / 2;  // of an even number, or 2^-60ths
  const int64_t whole = exact_floor(offset);
  const T between = rounded<T>(offset - Exact(whole) * (Exact(1) << kScale));
  const bool inside = centre + whole >= -1 && centre + whole < size;
  const auto at = among_zeros<T, Index>(size, centre, fraction, slope, rate);
  CHECK(at.pixel == (inside ? centre + whole : kNoPixel), at.pixel, whole, size, centre, fraction, slope, rate);
  // Where the product was rounded up to a whole pixel, what is missing to it is rounded before the one is added.
  const T tolerance = between > T(0.5) ? std::numeric_limits<T>::epsilon() / 2 : T(0);
  CHECK(
      std::fabs(at.fraction - (inside ? between : T(0))) <= tolerance, at.fraction, between, size, centre, fraction,
      slope, rate);
}

// f(T(), Index()) for the types that kernels use.
template <class F>
void for_all_types(const F& f) {
  f(float(), int32_t());
  f(float(), int64_t());
  f(double(), int32_t());
  f(double(), int64_t());
}

// ---- axis.h and positions.h

// What c10::SymInt has of an integer, and its division, which rounds down.
struct Symbolic {
  explicit Symbolic(int64_t value) : value(value) {}
  Symbolic operator-(const Symbolic& other) const { return Symbolic(value - other.value); }
  Symbolic operator-(int64_t other) const { return Symbolic(value - other); }
  Symbolic operator+(int64_t other) const { return Symbolic(value + other); }
  Symbolic operator/(int64_t other) const {
    return Symbolic(value >= 0 ? value / other : -((-value + other - 1) / other));
  }
  bool operator>(int64_t other) const { return value > other; }
  bool operator>=(int64_t other) const { return value >= other; }
  int64_t value;
};

TEST(output_size_counts_the_windows) {
  for (int64_t size = 0; size <= 12; ++size) {
    for (int64_t reach = 0; reach <= 14; ++reach) {
      for (int64_t stride = 1; stride <= 5; ++stride) {
        int64_t windows = 0;
        for (int64_t first = 0; first + reach < size; first += stride) {
          ++windows;
        }
        CHECK(output_size(size, reach, stride) == windows, windows, size, reach, stride);
        const auto symbolic = output_size(Symbolic(size), Symbolic(reach), stride);
        CHECK(symbolic.value == windows, symbolic.value, windows, size, reach, stride);
      }
    }
  }
}

TEST(output_size_of_large_images) {
  constexpr int64_t kLarge = std::numeric_limits<int64_t>::max();
  CHECK(output_size(kLarge, int64_t(0), 1) == kLarge, output_size(kLarge, int64_t(0), 1));
  CHECK(output_size(int64_t(0), kLarge - 1, 1) == 0, output_size(int64_t(0), kLarge - 1, 1));
  CHECK(output_size(kLarge, kLarge - 1, 7) == 1, output_size(kLarge, kLarge - 1, 7));
  CHECK(output_size(kLarge, int64_t(0), kLarge) == 1, output_size(kLarge, int64_t(0), kLarge));
}

TEST(tap_distance_is_from_the_centre) {
  for (const auto& axis : axes()) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      const double twice = static_cast<double>((2 * tap - (axis.kernel - 1)) * axis.dilation);
      CHECK(2 * tap_distance<double>(axis, tap) == twice, twice, axis.kernel, axis.dilation, tap);
      CHECK(2 * tap_distance<float>(axis, tap) == twice, twice, axis.kernel, axis.dilation, tap);
    }
  }
}

TEST(centre_is_the_formulas) {
  for (const auto& axis : axes()) {
    for (const bool aligned : {true, false}) {
      const auto fraction = centre_fraction<double>(axis, Source::kRates, aligned);
      CHECK(fraction == 0 || fraction == 0.5, fraction, axis.kernel, axis.dilation, aligned);
      CHECK(
          centre_fraction<float>(axis, Source::kRates, aligned) == fraction, fraction, axis.kernel, axis.dilation,
          aligned);
      for (int64_t i = 0; i < 5; ++i) {
        const int64_t twice = 2 * (i * axis.stride - axis.padding) + (aligned ? axis.dilation * (axis.kernel - 1) : 0);
        const int64_t pixel = centre_pixel(axis, i, aligned);
        CHECK(2 * (pixel + fraction) == twice, pixel, fraction, twice, axis.kernel, axis.dilation, i, aligned);
      }
    }
  }
}

// SPEC's formula as a whole, at rates that are whole numbers, 1 and what it is F.unfold for among them.
TEST(taps_lie_where_the_formula_says) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    for (const auto& axis : axes()) {
      for (int64_t tap = 0; tap < axis.kernel; ++tap) {
        for (int64_t rate = -3; rate <= 3; ++rate) {
          for (const bool aligned : {true, false}) {
            for (int64_t i = 0; i < axis.out_size; ++i) {
              const int64_t twice = 2 * (i * axis.stride - axis.padding) + twice_position(axis, tap, rate, aligned);
              const auto at = among_zeros<T, Index>(
                  static_cast<Index>(axis.size), static_cast<Index>(centre_pixel(axis, i, aligned)),
                  centre_fraction<T>(axis, Source::kRates, aligned), tap_distance<T>(axis, tap), static_cast<T>(rate));
              const bool inside = -2 <= twice && twice < 2 * axis.size;
              const T position = static_cast<T>(at.pixel) + at.fraction;
              CHECK(
                  inside ? 2 * position == twice : at.pixel == kNoPixel, at.pixel, at.fraction, twice, axis.kernel,
                  axis.dilation, axis.stride, axis.padding, tap, rate, aligned);
            }
          }
        }
      }
    }
  });
}

TEST(a_rate_of_one_is_the_plain_unfold) {
  for (const auto& axis : axes()) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      for (int64_t i = 0; i < axis.out_size; ++i) {
        const int64_t pixel = i * axis.stride - axis.padding + tap * axis.dilation;
        const auto at = among_zeros<float, int64_t>(
            axis.size, centre_pixel(axis, i, true), centre_fraction<float>(axis, Source::kRates, true),
            tap_distance<float>(axis, tap), 1);
        CHECK(at.fraction == 0, at.fraction, pixel);
        CHECK(at.pixel == (pixel >= -1 && pixel < axis.size ? pixel : kNoPixel), at.pixel, pixel, axis.size);
      }
    }
  }
}

// Rates of all magnitudes, none of them special.
TEST(neighbours_agree_with_exact_arithmetic) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    std::mt19937_64 random(0);
    for (int round = 0; round < 4000; ++round) {
      const int exponent = static_cast<int>(random() % 18) - 6;
      const T magnitude =
          static_cast<T>(std::ldexp(1 + static_cast<double>(random() >> 12) / (int64_t(1) << 52), exponent));
      const T rate = random() % 2 == 0 ? magnitude : -magnitude;
      const auto twice_slope = static_cast<int64_t>(random() % 33) - 16;
      const T fraction = random() % 2 == 0 ? T(0) : T(0.5);
      const auto size = static_cast<Index>(random() % 100000);
      // Mostly so that the tap is inside.
      const auto centre = static_cast<Index>(random() % 100000) - static_cast<Index>(twice_slope / 2 * rate);
      check_against_exact<T, Index>(size, centre, fraction, twice_slope, rate);
    }
  });
}

// NOTE [ Positions ]: the rates next to one that leads to a whole pixel. The rounded product reaches the pixel there,
// the exact one stays below it.
TEST(a_tap_lies_in_the_cell_of_exact_arithmetic) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    int rounded_up = 0;
    for (int64_t twice_slope = -15; twice_slope <= 15; ++twice_slope) {
      for (int64_t target = -40; target <= 40 && twice_slope != 0; ++target) {
        for (const T fraction : {T(0), T(0.5)}) {
          const T middle = (static_cast<T>(target) - fraction) * 2 / static_cast<T>(twice_slope);
          T rates[5] = {middle};
          for (const int side : {0, 1}) {
            const T towards = side == 0 ? -1000 : 1000;
            rates[1 + 2 * side] = std::nextafter(middle, towards);
            rates[2 + 2 * side] = std::nextafter(rates[1 + 2 * side], towards);
          }
          for (const T rate : rates) {
            if (std::fabs(rate) >= T(0.01)) {
              check_against_exact<T, Index>(100, 50, fraction, twice_slope, rate);
              volatile T product = static_cast<T>(twice_slope) / 2 * rate;  // rounded, whatever the compiler fuses
              volatile T offset = product + fraction;
              const Exact missing =
                  Exact(target) * (Exact(2) << kScale) - Exact(twice_slope) * exact(rate) - exact(2 * fraction);
              rounded_up += offset == target && missing > 0;
            }
          }
        }
      }
    }
    CHECK(rounded_up > 100, rounded_up);  // or the test would not see what it is for
  });
}

// A tap that a tiny rate moves off the centre of its window, up or down.
TEST(tiny_offsets_keep_their_side) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    using Limits = std::numeric_limits<T>;
    for (const T tiny : {Limits::denorm_min(), Limits::min(), T(1e-20), T(1e-9), Limits::epsilon() / 4}) {
      for (const T slope : {T(-3), T(-1), T(1), T(2)}) {
        const bool up = slope < 0;
        const auto at = among_zeros<T, Index>(5, 2, 0, slope, tiny);
        CHECK(at.pixel == (up ? 1 : 2), at.pixel, at.fraction, slope, tiny);
        const auto below = static_cast<T>(1 + static_cast<long double>(slope) * tiny);
        CHECK(at.fraction == (up ? below : slope * tiny), at.fraction, below, slope, tiny);
        const auto mirrored = among_zeros<T, Index>(5, 2, 0, -slope, -tiny);
        CHECK(mirrored.pixel == at.pixel && mirrored.fraction == at.fraction, mirrored.pixel, mirrored.fraction, slope);
      }
    }
  });
}

TEST(both_index_types_agree) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 4000; ++round) {
    const auto size = static_cast<int32_t>(random() % 50);
    const auto centre = static_cast<int32_t>(random() % 100) - 25;
    const auto rate = static_cast<float>(random() % 4096) / 128 - 16;
    const auto slope = static_cast<float>(random() % 9) / 2 - 2;
    const auto narrow = among_zeros<float, int32_t>(size, centre, 0.5F, slope, rate);
    const auto wide = among_zeros<float, int64_t>(size, centre, 0.5F, slope, rate);
    CHECK(
        narrow.pixel == wide.pixel && narrow.fraction == wide.fraction, narrow.pixel, wide.pixel, size, centre, slope,
        rate);
  }
}

TEST(the_edges_of_the_image) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    for (Index size = 0; size <= 3; ++size) {
      for (Index centre = -4; centre <= 6; ++centre) {
        for (int quarters = -12; quarters <= 12; ++quarters) {
          const T position = static_cast<T>(centre) + static_cast<T>(quarters) / 4;
          const auto at = among_zeros<T, Index>(size, centre, 0, 1, static_cast<T>(quarters) / 4);
          const bool inside = position >= -1 && position < static_cast<T>(size);
          CHECK(
              inside ? static_cast<T>(at.pixel) + at.fraction == position : at.pixel == kNoPixel, at.pixel, at.fraction,
              size, position);
          CHECK(at.fraction >= 0 && at.fraction < 1 && (inside || at.fraction == 0), at.fraction, size, position);
        }
      }
    }
  });
}

// An image of 10^9 pixels has the same fractions as a small one.
TEST(fractions_do_not_depend_on_the_centre) {
  for (const float rate : {0.3F, 1.0F / 3, -2.7F, 17.77F}) {
    const auto near = among_zeros<float, int32_t>(100, 50, 0.5F, 1.5F, rate);
    const auto far = among_zeros<float, int32_t>(1000000000, 999999900, 0.5F, 1.5F, rate);
    CHECK(near.fraction == far.fraction && near.pixel - 50 == far.pixel - 999999900, near.fraction, far.fraction, rate);
  }
}

TEST(rates_that_are_not_finite_have_no_neighbours) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    const T infinity = std::numeric_limits<T>::infinity();
    for (const T rate : {std::numeric_limits<T>::quiet_NaN(), infinity, -infinity}) {
      for (const T slope : {T(-2), T(-0.5), T(0), T(1)}) {
        for (const T fraction : {T(0), T(0.5)}) {
          const auto at = among_zeros<T, Index>(5, 2, fraction, slope, rate);
          CHECK(at.pixel == kNoPixel && at.fraction == 0, at.pixel, at.fraction, slope, rate);
        }
      }
    }
  });
}

// An image as large as there may be: wherever the tap is, it has an address, and it is the right one.
TEST(rates_of_any_size_are_safe) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    const Index largest = (Index(1) << (8 * sizeof(Index) - 2)) - 1;
    for (int exponent = -30; exponent < std::numeric_limits<T>::max_exponent; ++exponent) {
      for (const T slope : {T(-7.5), T(-1), T(0), T(0.5), T(64)}) {
        for (const Index centre : {Index(-largest), Index(0), Index(largest)}) {
          for (const T rate : {std::ldexp(T(1), exponent), std::ldexp(T(-1.5), exponent)}) {
            const auto at = among_zeros<T, Index>(largest, centre, 0, slope, rate);
            CHECK(at.fraction >= 0 && at.fraction <= 1, at.fraction, centre, slope, rate);
            const long double offset = std::floor(static_cast<long double>(slope) * rate);
            const bool near = std::fabs(offset) < std::ldexp(1.0L, 8 * sizeof(Index) - 2);
            const long double pixel = centre + offset;
            const bool inside = near && pixel >= -1 && pixel < largest;
            CHECK(at.pixel == (inside ? pixel : kNoPixel), at.pixel, pixel, centre, slope, rate);
          }
        }
      }
    }
  });
}

TEST(the_largest_rate_is_safe) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    const T largest = std::numeric_limits<T>::max();
    for (const T rate : {largest, -largest, largest / 2, -largest / 2}) {
      for (const T slope : {T(-100), T(-0.5), T(0.5), T(100)}) {
        const auto at = among_zeros<T, Index>(5, 2, 0, slope, rate);
        CHECK(at.pixel == kNoPixel && at.fraction == 0, at.pixel, at.fraction, slope, rate);
      }
      const auto centre = among_zeros<T, Index>(5, 2, 0.5, 0, rate);
      CHECK(centre.pixel == 2 && centre.fraction == T(0.5), centre.pixel, centre.fraction, rate);
    }
  });
}

TEST(int32_fits_below_its_limits) {
  const int64_t limit = int64_t(1) << 30;
  const Axis<int64_t> fits = {limit - 1, 1, limit, 1, limit - 1, 1};
  CHECK(fits_int32(fits), limit);
  Axis<int64_t> axis = fits;
  axis.size = limit;
  CHECK(!fits_int32(axis), axis.size);
  axis = fits;
  axis.padding = limit;
  CHECK(!fits_int32(axis), axis.padding);
  axis = fits;
  axis.kernel = limit + 1;
  CHECK(!fits_int32(axis), axis.kernel);
  axis = fits;
  axis.kernel = 2;
  axis.dilation = limit - 1;
  CHECK(fits_int32(axis), axis.dilation);
  axis.dilation = limit;
  CHECK(!fits_int32(axis), axis.dilation);
}

// Of the largest axis that fits: its first and last window, taps near and far. A sum that wraps around would show, at
// the latest under UndefinedBehaviorSanitizer.
TEST(what_fits_int32_does_not_wrap_around) {
  const int64_t largest = (int64_t(1) << 30) - 1;
  for (const int64_t kernel : {int64_t(1), int64_t(2), largest + 1}) {
    Axis<int64_t> axis = {largest, 0, kernel, 1, largest, 1};
    axis.out_size = output_size(axis.size + 2 * axis.padding, axis.dilation * (axis.kernel - 1), axis.stride);
    for (const bool aligned : {true, false}) {
      for (const int64_t i : {int64_t(0), axis.out_size / 2, axis.out_size - 1}) {
        const int64_t centre = centre_pixel(axis, i, aligned);
        for (const int64_t tap : {int64_t(0), axis.kernel / 2, axis.kernel - 1}) {
          for (const double rate : {-3.0, -1.0, 0.0, 0.25, 1.0, 1e6, -1e9, 1e30}) {
            const double fraction = centre_fraction<double>(axis, Source::kRates, aligned);
            const double slope = tap_distance<double>(axis, tap);
            CHECK(fits_int32(axis) && centre == static_cast<int32_t>(centre), centre);
            const auto narrow = among_zeros<double, int32_t>(
                static_cast<int32_t>(axis.size), static_cast<int32_t>(centre), fraction, slope, rate);
            const auto wide = among_zeros<double, int64_t>(axis.size, centre, fraction, slope, rate);
            const bool reachable = std::fabs(slope * rate) < static_cast<double>(largest);
            CHECK(narrow.pixel == (reachable ? wide.pixel : kNoPixel), narrow.pixel, wide.pixel, kernel, i, tap, rate);
          }
        }
      }
    }
  }
}

// ---- interpolation.h

// Everything below is a multiple of a power of two, so nothing is rounded and equal means equal.

TEST(axis_weights_interpolate_and_differentiate) {
  for (const double fraction : {0.0, 0.25, 0.5, 0.875, 1.0}) {
    for (const double slope : {-1.5, 0.0, 2.0}) {
      const auto w = axis_weights(fraction, slope);
      CHECK(w.low[0] == 1 - fraction && w.high[0] == fraction, w.low[0], w.high[0], fraction);
      CHECK(w.low[1] == -slope && w.high[1] == slope, w.low[1], w.high[1], slope);
    }
  }
}

constexpr double kPixels[4] = {3, -7, 11, 0.5};  // nw, ne, sw, se

// A cell's bilinear function and its derivatives, from the coefficients of 1, y, x and yx.
double bilinear(int by_y, int by_x, double y, double x) {
  const double constant = kPixels[0];
  const double down = kPixels[2] - kPixels[0];
  const double right = kPixels[1] - kPixels[0];
  const double both = kPixels[3] - kPixels[2] - kPixels[1] + kPixels[0];
  if (by_y == 0) {
    return by_x == 0 ? constant + down * y + right * x + both * y * x : right + both * y;
  }
  return by_x == 0 ? down + both * x : both;
}

// The derivative taken a times along the height and b times along the width, by the rates.
Term partial(int a, int b, int count = 1) {
  Term term = {};
  const int q = a * axis_bit(1) + b * axis_bit(2);
  term.count[q] = static_cast<int8_t>(count);
  term.power[q][1] = static_cast<int8_t>(a);
  term.power[q][2] = static_cast<int8_t>(b);
  return term;
}

CornerWeights<2, double> weights_at(const Term& term, double y, double distance_y, double x, double distance_x) {
  const AxisWeights<double> weights[] = {axis_weights(y, 1.0), axis_weights(x, 1.0)};
  const double distance[] = {distance_y, distance_x};
  return corner_weights(weights, distance, term);
}

double weighted(const CornerWeights<2, double>& w) {
  double sum = 0;
  for (int c = 0; c < 4; ++c) {
    sum += w.corner[c] * kPixels[c];
  }
  return sum;
}

// What corner_weights makes of the cell at rates (rate_y, rate_x), the taps at 1/4 + slope * rate.
double sampled(const Term& term, double slope_y, double rate_y, double slope_x, double rate_x) {
  return weighted(weights_at(term, 0.25 + slope_y * rate_y, slope_y, 0.25 + slope_x * rate_x, slope_x));
}

const Term kValue = partial(0, 0);

TEST(corner_weights_are_the_terms_of_the_bilinear_formula) {
  for (int a = 0; a < 2; ++a) {
    for (int b = 0; b < 2; ++b) {
      for (const int count : {1, 2, -3}) {
        if (a + b == 0 && count != 1) {
          continue;  // the value occurs once, alone
        }
        for (const double y : {0.0, 0.125, 0.75, 1.0}) {
          for (const double x : {0.0, 0.5, 1.0}) {
            const double slope_y = -1.5;
            const double slope_x = 2.5;
            const double value = weighted(weights_at(partial(a, b, count), y, slope_y, x, slope_x));
            const double chain = (a == 0 ? 1 : slope_y) * (b == 0 ? 1 : slope_x);
            CHECK(value == count * chain * bilinear(a, b, y, x), value, a, b, count, y, x);
          }
        }
      }
    }
  }
}

TEST(corner_weights_add_up_the_terms) {
  Term all = {};
  double sum = 0;
  for (int q = 1; q < 4; ++q) {
    const Term one = partial(q / 2, q % 2, q + 1);
    all.count[q] = one.count[q];
    std::copy(one.power[q], one.power[q] + kMaxAxes, all.power[q]);
    sum += sampled(one, 0.5, 0.25, -1.5, 0.125);
  }
  CHECK(sampled(all, 0.5, 0.25, -1.5, 0.125) == sum, sampled(all, 0.5, 0.25, -1.5, 0.125), sum);
  CHECK(sampled(Term{}, 0.5, 0.25, -1.5, 0.125) == 0, sampled(Term{}, 0.5, 0.25, -1.5, 0.125));
}

TEST(weights_of_a_value_sum_to_one_and_of_a_derivative_to_zero) {
  for (const float y : {0.0F, 0.375F, 1.0F}) {
    for (int a = 0; a < 2; ++a) {
      for (int b = 0; b < 2; ++b) {
        const auto w = weights_at(partial(a, b), y, 1.5, 0.25, -2.0);
        const double sum = w.corner[0] + w.corner[1] + w.corner[2] + w.corner[3];
        CHECK(sum == (a + b == 0 ? 1 : 0), sum, y, a, b);
      }
    }
  }
}

TEST(corners_become_the_partial_derivatives_that_their_weights_are_for) {
  for (const double direction : {1.0, -1.0, 0.0}) {
    for (const double y : {0.0, 0.125, 1.0}) {
      for (const double x : {0.25, 0.75}) {
        const double fraction[] = {y, x};
        const double directions[] = {1.0, direction};
        const AxisWeights<double> weights[] = {axis_weights(y, 1.0), axis_weights(x, direction)};
        double partials[] = {kPixels[0], kPixels[1], kPixels[2], kPixels[3]};
        differentiate(fraction, directions, partials);
        for (int q = 0; q < 4; ++q) {
          double sum = 0;
          for (int c = 0; c < 4; ++c) {
            sum += corner_weight(weights, q, c) * kPixels[c];
          }
          CHECK(partials[q] == sum, partials[q], sum, q, y, x, direction);
        }
      }
    }
  }
}

TEST(what_corners_have_in_common_cancels_before_it_is_multiplied) {
  const float large = 8388608;  // its sum with one is the next float
  const float fraction[] = {0.3F, 0.7F};
  const float direction[] = {1, 1};
  float partials[] = {large, large + 1, large, large + 1};
  differentiate(fraction, direction, partials);
  CHECK(partials[1] == 1 && partials[2] == 0 && partials[3] == 0, partials[1], partials[2], partials[3]);
}

// The derivative of so much order by each rate, of two axes.
Term rates_term(const std::vector<int64_t>& order) {
  return term_of(Source::kRates, 2, static_cast<int64_t>(order.size()), [&](int64_t r) { return order[r]; });
}

// A sample is a polynomial of second degree in a rate, for which central differences are exact.
TEST(first_terms_are_the_derivatives_by_the_rates) {
  const double step = 0.125;
  for (const double slope_y : {-1.5, 0.0, 1.0}) {
    for (const double slope_x : {-0.5, 2.0}) {
      for (const double rate : {0.0, 0.25, 1.5}) {
        const auto difference = [&](double step_y, double step_x) {
          return (sampled(kValue, slope_y, rate + step_y, slope_x, 1 + step_x) -
                  sampled(kValue, slope_y, rate - step_y, slope_x, 1 - step_x)) /
              (2 * step);
        };
        const auto at = [&](const Term& term) { return sampled(term, slope_y, rate, slope_x, 1); };
        const Term by_rate = rates_term({1});
        CHECK(at(by_rate) == difference(step, step), at(by_rate), slope_y, slope_x, rate);
        const Term by_height = rates_term({1, 0});
        CHECK(at(by_height) == difference(step, 0), at(by_height), slope_y, slope_x, rate);
        const Term by_width = rates_term({0, 1});
        CHECK(at(by_width) == difference(0, step), at(by_width), slope_y, slope_x, rate);
      }
    }
  }
}

TEST(second_derivatives_are_second_differences) {
  const double step = 0.25;
  const auto f = [](double dy, double dx) { return sampled(kValue, -1.5, 0.5 + dy, 2.0, 1 + dx); };
  // d2/dD2 = 2 d2/dydx for one rate; d2/dydx for one per axis.
  const double one_rate = sampled(rates_term({2}), -1.5, 0.5, 2.0, 1);
  CHECK(one_rate == (f(step, step) - 2 * f(0, 0) + f(-step, -step)) / (step * step), one_rate);
  const double mixed = sampled(rates_term({1, 1}), -1.5, 0.5, 2.0, 1);
  CHECK(mixed == (f(step, step) - f(step, -step) - f(-step, step) + f(-step, -step)) / (4 * step * step), mixed);
}

// ---- terms

TEST(a_term_vanishes_without_a_count) {
  CHECK(vanishes(Term{}), 0);
  for (int q = 0; q < kCorners; ++q) {
    for (const int count : {1, 2, -1}) {
      Term term = {};
      term.count[q] = static_cast<int8_t>(count);
      CHECK(!vanishes(term) && is_value(term) == (q == 0 && count == 1), q, count);
    }
  }
}

TEST(a_first_derivative_is_along_one_axis_at_a_time) {
  for (int64_t axes = 1; axes <= kMaxAxes; ++axes) {
    for (int64_t order = 0; order <= axes; ++order) {
      const Term term = term_of(Source::kRates, axes, 1, [&](int64_t) { return order; });
      CHECK(is_first_derivative(term) == (order == 1), axes, order);
    }
  }
  for (int q = 0; q < kCorners; ++q) {
    const auto along = [&](int64_t axis) { return (q & axis_bit(static_cast<int>(axis))) != 0 ? 1 : 0; };
    const Term term = term_of(Source::kOffsets, 3, 3, along);
    CHECK(is_first_derivative(term) == (along(0) + along(1) + along(2) == 1), q);
  }
}

// The n-th derivative by the one rate of all axes: the partial derivatives along n different ones, in every order.
TEST(terms_of_one_rate_count_the_orders_of_the_axes) {
  for (int64_t axes = 1; axes <= kMaxAxes; ++axes) {
    for (int64_t order = 0; order <= axes + 1; ++order) {
      const Term term = term_of(Source::kRates, axes, 1, [&](int64_t) { return order; });
      int64_t sum = 0;
      int64_t expected = order <= axes ? 1 : 0;
      for (int64_t n = 0; n < order; ++n) {
        expected *= axes - n;
      }
      for (int q = 0; q < kCorners; ++q) {
        sum += term.count[q];
        CHECK(term.count[q] == 0 || q < 1 << axes, axes, order, q);
      }
      CHECK(sum == expected, sum, expected, axes, order);
    }
  }
}

// By an entry of the matrix: along the axis of its row, times the distance along the axis of its column.
TEST(terms_of_an_affine_map) {
  for (int axes = 1; axes <= kMaxAxes; ++axes) {
    const int first = kMaxAxes - axes;
    const int64_t parameters = parameters_of(Source::kAffine, axes);
    CHECK(parameters == axes * (axes + 1), parameters, axes);
    for (int64_t r = 0; r < parameters; ++r) {
      const int row = static_cast<int>(r) / (axes + 1);
      const int column = static_cast<int>(r) % (axes + 1);
      const auto once = [&](int64_t s) { return r == s ? 1 : 0; };
      const Term term = term_of(Source::kAffine, axes, parameters, once);
      for (int q = 0; q < kCorners; ++q) {
        CHECK(term.count[q] == (q == axis_bit(first + row) ? 1 : 0), q, r, axes);
        for (int a = 0; a < kMaxAxes && term.count[q] != 0; ++a) {
          CHECK(term.power[q][a] == (column < axes && a == first + column ? 1 : 0), a, r, axes);
        }
      }
      for (int64_t s = 0; s < parameters; ++s) {  // and by another one
        const auto both = [&](int64_t t) { return once(t) + (s == t ? 1 : 0); };
        const bool same_row = s / (axes + 1) == row;
        CHECK(vanishes(term_of(Source::kAffine, axes, parameters, both)) == same_row, r, s, axes);
      }
    }
    for (int64_t b = 0; b < axes; ++b) {
      CHECK(basis(Source::kAffine, axes, b) == b * (axes + 1) + axes, b, axes);
    }
    const auto huge = [](int64_t) { return std::numeric_limits<int64_t>::max(); };
    CHECK(vanishes(term_of(Source::kAffine, axes, parameters, huge)), axes);
  }
}

// ---- what is not zeros, offsets and affine maps

TEST(the_border_continues_the_edge) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    for (Index size = 1; size <= 4; ++size) {
      for (int quarters = -40; quarters <= 40; ++quarters) {
        const T position = static_cast<T>(quarters) / 4;
        const auto at = neighbours<T, Index>(size, 0, 0, 1, position, PaddingMode::kBorder);
        const T place = static_cast<T>(at.pixel) + at.fraction;
        const T expected = std::fmin(std::fmax(position, T(0)), static_cast<T>(size - 1));
        CHECK(place == expected, place, expected, size, position);
        const bool inside = position >= 0 && position < static_cast<T>(size - 1);
        CHECK(at.direction == (inside ? 1 : 0), at.direction, size, position);
        CHECK(at.pixel >= -1 && at.pixel < size, at.pixel, size, position);
      }
    }
  });
}

TEST(reflection_turns_at_the_centres_of_the_outer_pixels) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    for (Index size = 1; size <= 4; ++size) {
      for (Index base = -30; base <= 30; base += 3) {
        for (int quarters = -40; quarters <= 40; ++quarters) {
          const T position = static_cast<T>(base) + static_cast<T>(quarters) / 4;
          T expected = position;
          int direction = size == 1 ? 0 : 1;
          // On a whole pixel the direction is the one from the right.
          while (size > 1 && (expected < 0 || expected > static_cast<T>(size - 1))) {
            expected = expected < 0 ? -expected : 2 * static_cast<T>(size - 1) - expected;
            direction = -direction;
          }
          const bool turning = size > 1 && (expected == 0 || expected == static_cast<T>(size - 1));
          const auto at =
              neighbours<T, Index>(size, base, 0, 1, static_cast<T>(quarters) / 4, PaddingMode::kReflection);
          const T place = static_cast<T>(at.pixel) + at.fraction;
          CHECK(place == (size == 1 ? 0 : expected), place, expected, size, position);
          if (turning) {
            direction = expected == 0 ? 1 : -1;
          }
          CHECK(at.direction == direction, at.direction, direction, size, position);
        }
      }
    }
  });
}

TEST(what_is_not_finite_has_no_neighbours_in_any_mode) {
  for_all_types([](auto type, auto index) {
    using T = decltype(type);
    using Index = decltype(index);
    const T infinity = std::numeric_limits<T>::infinity();
    for (const auto mode : {PaddingMode::kBorder, PaddingMode::kReflection}) {
      for (const T parameter : {std::numeric_limits<T>::quiet_NaN(), infinity, -infinity}) {
        const auto at = neighbours<T, Index>(5, 2, 0, 1, parameter, mode);
        CHECK(at.pixel == kNoPixel, at.pixel, parameter);
      }
      for (const T parameter : {std::numeric_limits<T>::max(), -std::numeric_limits<T>::max()}) {
        const auto at = neighbours<T, Index>(5, 2, 0, 1, parameter, mode);
        CHECK(at.pixel >= -1 && at.pixel < 5, at.pixel, parameter);
        if (mode == PaddingMode::kBorder) {
          CHECK(at.pixel + at.fraction == (parameter < 0 ? 0 : 4), at.pixel, at.fraction, parameter);
        }
      }
    }
  });
}

TEST(offsets_move_the_taps_of_the_plain_window) {
  for (const auto& axis : axes()) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      const auto place = tap_place<double>(axis, Source::kOffsets, true, tap);
      CHECK(place.pixels == tap * axis.dilation && place.fraction == 0 && place.slope == 1, place.pixels, tap);
      CHECK(first_pixel(axis, Source::kOffsets, true) == -axis.padding, axis.padding);
      const auto rates = tap_place<double>(axis, Source::kRates, true, tap);
      CHECK(rates.pixels == 0 && rates.slope == tap_distance<double>(axis, tap), rates.pixels, rates.slope, tap);
    }
  }
}

TEST(an_affine_map_moves_the_window_at_rate_one) {
  for (const auto& axis : axes()) {
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      const auto place = tap_place<double>(axis, Source::kAffine, false, tap);
      const auto rates = tap_place<double>(axis, Source::kRates, true, tap);
      CHECK(place.pixels == 0 && place.fraction == rates.fraction && place.slope == 1, place.fraction, tap);
      CHECK(first_pixel(axis, Source::kAffine, false) == first_pixel(axis, Source::kRates, true), axis.kernel);
    }
  }
}

TEST(a_displacement_is_finite) {
  for_all_types([](auto type, auto) {
    using T = decltype(type);
    constexpr T kMost = std::numeric_limits<T>::max();
    const T distance[2] = {-2, 3};
    CHECK(displacement({T(0.5), T(0.25)}, T(1), distance) == T(0.75), 0);
    for (const T a : {-kMost, T(0), kMost}) {
      for (const T b : {-kMost, T(0), kMost}) {
        for (const T shift : {-kMost, T(0), kMost}) {
          const T matrix[2] = {a, b};
          const T found = displacement(matrix, shift, distance);
          CHECK(std::isfinite(found), found, a, b, shift);
        }
      }
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const auto& each : cases()) {
      std::puts(each.name);
    }
    return 0;
  }
  const auto wanted = [&](const char* name) {
    bool found = argc == 1;
    for (int k = 1; k < argc; ++k) {
      found = found || std::strcmp(argv[k], name) == 0;
    }
    return found;
  };
  int run = 0;
  int failed = 0;
  for (const auto& each : cases()) {
    if (wanted(each.name)) {
      failures = 0;
      each.run();
      ++run;
      failed += failures != 0;
      std::cout << (failures == 0 ? "passed " : "FAILED ") << each.name;
      std::cout << (failures == 0 ? "" : ": " + std::to_string(failures) + " checks failed") << "\n";
    }
  }
  if (argc > 1 && run != argc - 1) {
    std::cout << "no such case; --list prints them\n";
    return 2;
  }
  return failed == 0 ? 0 : 1;
}
