// SPDX-License-Identifier: MIT
// What tests know about the kernels: which ones there are, how often each was launched, and which ones calls must take.
//
// A check only counts for the code that it reaches, and checked calls are small, whereas most kernels are for large
// ones. So kernels are launched through counted(), which lists them, and tests may redirect calls.
#pragma once

#include <atomic>
#include <string_view>

namespace ddu::cuda {

// An instantiation of a kernel, registered when the library is loaded.
struct LaunchCount {
  std::string_view name;
  LaunchCount* next;
  std::atomic<long long> launches{0};

  static inline LaunchCount* first = nullptr;

  // `text` comes from the compiler: "... kKernel = ddu::...::sample_kernel<float, int>]".
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

  // The pointer, to be launched once.
  Pointer launch() const {
    count->launches.fetch_add(1, std::memory_order_relaxed);
    return pointer;
  }
};

template <auto kKernel>
CountedKernel<decltype(kKernel)> counted() {
  return {kKernel, &launch_count<kKernel>};
}

// For tests. fast: calls take the fast kernels wherever these can compute the result, worthwhile or not. wide: offsets
// have 64 bits.
struct Forced {
  std::atomic<bool> fast{false};
  std::atomic<bool> wide{false};
};

inline Forced forced;

}  // namespace ddu::cuda
