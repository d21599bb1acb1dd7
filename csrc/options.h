// SPDX-License-Identifier: MIT
#pragma once

#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <array>
#include <cstdint>

namespace ddu {

// The options of an operator as its caller gave them. Unchecked: args.h does that.
struct Window {
  using Ints = c10::SmallVector<int64_t, 2>;
  using Lists = std::array<Ints, 6>;

  Window(
      c10::IntArrayRef kernel_size,
      c10::IntArrayRef stride,
      c10::IntArrayRef padding,
      c10::IntArrayRef dilation,
      int64_t groups,
      bool aligned,
      c10::IntArrayRef order = {})
      : kernel_size(kernel_size.begin(), kernel_size.end()),
        stride(stride.begin(), stride.end()),
        padding(padding.begin(), padding.end()),
        dilation(dilation.begin(), dilation.end()),
        groups(groups),
        aligned(aligned),
        order(order.begin(), order.end()) {}

  explicit Window(const Lists& lists)
      : Window(lists[0], lists[1], lists[2], lists[3], lists[4][0], lists[4][1] != 0, lists[5]) {}

  Lists lists() const { return {kernel_size, stride, padding, dilation, {groups, aligned ? 1 : 0}, order}; }

  Ints kernel_size;
  Ints stride;
  Ints padding;
  Ints dilation;
  int64_t groups;
  bool aligned;
  Ints order;  // of the derivative, an entry per rate; empty: the value itself
};

}  // namespace ddu
