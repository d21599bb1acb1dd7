// SPDX-License-Identifier: MIT
// What tests know of the kernels: which ones there are, how often each was launched, and which ones calls are to take.
//
// A check counts for the code that it reaches, and the calls that are checked are small, when most kernels are for
// large ones. So kernels are launched through counted(), which makes a list of them, and tests may send calls
// elsewhere.
#pragma once

#include <atomic>
#include <string_view>

namespace ddu::cuda {

// An instantiation of a kernel, from when the library is loaded.
struct LaunchCount {
  std::string_view name;
  LaunchCount* next;
  std::atomic<long long> launches{0};

  static inline LaunchCount* first = nullptr;

  // `text` is the compiler's: "... kKernel = ddu::...::sample_kernel<float, int>]".
  explicit LaunchCount(std::string_view text) : next(first) {
    const auto begin = text.rfind("::", text.find('<')) + 2;
    name = text.substr(begin, text.rfind(']') - begin);
    first = this;
  }
};

template <auto kKernel>
const char* text_of() {
  return __PRETTY_FUNCTION__;
}

template <auto kKernel>
inline LaunchCount launch_count{text_of<kKernel>()};

template <class Pointer>
struct CountedKernel {
  Pointer pointer;
  LaunchCount* count;

  // To be launched, once.
  Pointer launch() const {
    count->launches.fetch_add(1, std::memory_order_relaxed);
    return pointer;
  }
};

template <auto kKernel>
CountedKernel<decltype(kKernel)> counted() {
  return {kKernel, &launch_count<kKernel>};
}

// For tests: calls take the fast kernels wherever these can compute the result, whether that pays or not; and offsets
// of 64 bits.
struct Forced {
  std::atomic<bool> fast{false};
  std::atomic<bool> wide{false};
};

inline Forced forced;

}  // namespace ddu::cuda
