// SPDX-License-Identifier: MIT
// The CPU kernels for the instructions that every machine of this architecture has.

#define DDU_CAPABILITY baseline
#include "kernels_impl.h"
// Must follow kernels_impl.h.
#include "convolution_impl.h"
