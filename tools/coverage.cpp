// SPDX-License-Identifier: MIT
// What gcc's -fsanitize-coverage=trace-pc calls at every branch, for tools/fuzz.py: a byte for each place that was
// reached, by a hash of its address. Compiled into the extension by DDU_SANITIZE only (setup.py).

#include <cstdint>

extern "C" {

__attribute__((visibility("default"))) unsigned char ddu_coverage[1 << 16];

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc() {
  const auto place = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  ddu_coverage[(place * UINT64_C(0x9E3779B97F4A7C15)) >> 48] = 1;
}
}
