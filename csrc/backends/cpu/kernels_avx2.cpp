// SPDX-License-Identifier: MIT
// The CPU kernels for AVX2.

#include "convolution_impl.h"  // what it includes, for any machine
#include "kernels_impl.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DDU_CAPABILITY avx2
#define DDU_F16C
#include "x86.h"
DDU_TARGET_BEGIN("avx2,fma,f16c")
#include "kernels_impl.h"
// Must follow kernels_impl.h.
#include "convolution_impl.h"
DDU_TARGET_END
#endif
