// SPDX-License-Identifier: MIT
// The CPU kernels for AVX-512.

#include "convolution_impl.h"  // what it includes, for any machine
#include "kernels_impl.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DDU_CAPABILITY avx512
#define DDU_F16C
#define DDU_VECTOR_BYTES 64
#include "x86.h"
DDU_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#include "kernels_impl.h"
// Must follow kernels_impl.h.
#include "convolution_impl.h"
DDU_TARGET_END
#endif
