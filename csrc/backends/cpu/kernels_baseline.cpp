// SPDX-License-Identifier: MIT
// The CPU kernels for what every machine of this architecture has.

#define DDU_CAPABILITY baseline
#include "kernels_impl.h"
// After it.
#include "convolution_impl.h"
