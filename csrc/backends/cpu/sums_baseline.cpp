// SPDX-License-Identifier: MIT
// The CPU kernels for the sums of windows, for the instructions that every machine of this architecture has.

#define DDU_CAPABILITY baseline
#include "sums_impl.h"
