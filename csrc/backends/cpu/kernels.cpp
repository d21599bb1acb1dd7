// SPDX-License-Identifier: MIT
#include "kernels.h"

#include "convolution.h"
#include "sums_kernels.h"

#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <string>

namespace ddu::cpu {

#define DDU_DECLARE(capability) \
  namespace capability { \
  extern const ConvolutionKernels<double, double> kConvolutionDouble; \
  extern const ConvolutionKernels<float, float> kConvolutionFloat; \
  extern const ConvolutionKernels<c10::Half, float> kConvolutionHalf; \
  extern const ConvolutionKernels<c10::BFloat16, float> kConvolutionBFloat16; \
  extern const Kernels<double, double> kDouble; \
  extern const Kernels<float, float> kFloat; \
  extern const Kernels<c10::Half, float> kHalf; \
  extern const Kernels<c10::BFloat16, float> kBFloat16; \
  }

DDU_DECLARE(baseline)
DDU_DECLARE(avx2)
DDU_DECLARE(avx512)

#define DDU_DECLARE_SUMS(capability) \
  namespace capability { \
  extern const SumsKernels<double, double> kSumsDouble; \
  extern const SumsKernels<float, float> kSumsFloat; \
  extern const SumsKernels<c10::Half, float> kSumsHalf; \
  extern const SumsKernels<c10::BFloat16, float> kSumsBFloat16; \
  }

DDU_DECLARE_SUMS(baseline)
DDU_DECLARE_SUMS(avx2)
DDU_DECLARE_SUMS(avx512)

namespace {

enum class Capability { kBaseline, kAvx2, kAvx512 };

Capability find_capability() {
#if defined(__x86_64__) && defined(__GNUC__)
  const auto capability = at::get_cpu_capability();
  if (capability == "AVX512" && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Capability::kAvx512;
  }
  if ((capability == "AVX512" || capability == "AVX2") && __builtin_cpu_supports("f16c")) {
    return Capability::kAvx2;
  }
#endif
  return Capability::kBaseline;
}

Capability capability() {
  static const auto found = find_capability();
  return found;
}

template <class Table>
const Table& choose(const Table& baseline, const Table& avx2, const Table& avx512) {
  return capability() == Capability::kAvx512 ? avx512 : capability() == Capability::kAvx2 ? avx2 : baseline;
}

}  // namespace

const char* capability_name() {
  static constexpr const char* kNames[] = {"DEFAULT", "AVX2", "AVX512"};
  return choose(kNames[0], kNames[1], kNames[2]);
}

#if defined(__x86_64__) && defined(__GNUC__)
#define DDU_CHOOSE(table) choose(baseline::table, avx2::table, avx512::table)
#else
#define DDU_CHOOSE(table) choose(baseline::table, baseline::table, baseline::table)
#endif

template <>
const ConvolutionKernels<double, double>& convolution_kernels() {
  return DDU_CHOOSE(kConvolutionDouble);
}

template <>
const ConvolutionKernels<float, float>& convolution_kernels() {
  return DDU_CHOOSE(kConvolutionFloat);
}

template <>
const ConvolutionKernels<c10::Half, float>& convolution_kernels() {
  return DDU_CHOOSE(kConvolutionHalf);
}

template <>
const ConvolutionKernels<c10::BFloat16, float>& convolution_kernels() {
  return DDU_CHOOSE(kConvolutionBFloat16);
}

template <>
const SumsKernels<double, double>& sums_kernels() {
  return DDU_CHOOSE(kSumsDouble);
}

template <>
const SumsKernels<float, float>& sums_kernels() {
  return DDU_CHOOSE(kSumsFloat);
}

template <>
const SumsKernels<c10::Half, float>& sums_kernels() {
  return DDU_CHOOSE(kSumsHalf);
}

template <>
const SumsKernels<c10::BFloat16, float>& sums_kernels() {
  return DDU_CHOOSE(kSumsBFloat16);
}

template <>
const Kernels<double, double>& kernels() {
  return DDU_CHOOSE(kDouble);
}

template <>
const Kernels<float, float>& kernels() {
  return DDU_CHOOSE(kFloat);
}

template <>
const Kernels<c10::Half, float>& kernels() {
  return DDU_CHOOSE(kHalf);
}

template <>
const Kernels<c10::BFloat16, float>& kernels() {
  return DDU_CHOOSE(kBFloat16);
}

}  // namespace ddu::cpu
