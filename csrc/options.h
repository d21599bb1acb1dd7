// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "params.h"

namespace ddu {

// An operator's options as the caller gave them, unchecked: checks.h checks them.
struct Options {
  using Ints = c10::SmallVector<int64_t, kMaxAxes>;
  using Lists = std::array<Ints, 8>;

  std::string source;
  Ints kernel_size;
  Ints stride;
  Ints padding;
  Ints dilation;
  int64_t groups;
  bool aligned;
  std::string padding_mode;
  Ints order;  // of the derivative, one entry per parameter; empty: the value itself

  Options(
      std::string_view source,
      c10::IntArrayRef kernel_size,
      c10::IntArrayRef stride,
      c10::IntArrayRef padding,
      c10::IntArrayRef dilation,
      int64_t groups,
      bool aligned,
      std::string_view padding_mode,
      c10::IntArrayRef order = {})
      : source(source),
        kernel_size(kernel_size.begin(), kernel_size.end()),
        stride(stride.begin(), stride.end()),
        padding(padding.begin(), padding.end()),
        dilation(dilation.begin(), dilation.end()),
        groups(groups),
        aligned(aligned),
        padding_mode(padding_mode),
        order(order.begin(), order.end()) {}

  // As integers, for compiled autograd; words become lists of letters.
  Lists lists() const {
    return {kernel_size,           stride, padding, dilation, {groups, aligned ? 1 : 0}, letters(source),
            letters(padding_mode), order};
  }

  explicit Options(const Lists& lists)
      : Options(
            word(lists[5]),
            lists[0],
            lists[1],
            lists[2],
            lists[3],
            lists[4][0],
            lists[4][1] != 0,
            word(lists[6]),
            lists[7]) {}

 private:
  static Ints letters(const std::string& word) { return Ints(word.begin(), word.end()); }
  static std::string word(const Ints& letters) { return std::string(letters.begin(), letters.end()); }
};

}  // namespace ddu
