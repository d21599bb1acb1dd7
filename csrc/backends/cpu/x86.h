// SPDX-License-Identifier: MIT
// Compiles the code between DDU_TARGET_BEGIN and DDU_TARGET_END, and nothing else in a file, for an instruction set.
// Headers must be included before it, since their inline functions are shared by all files of the program.
#pragma once

#define DDU_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define DDU_TARGET_BEGIN(set) DDU_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define DDU_TARGET_END DDU_PRAGMA(clang attribute pop)
#else
#define DDU_TARGET_BEGIN(set) DDU_PRAGMA(GCC push_options) DDU_PRAGMA(GCC target(set))
#define DDU_TARGET_END DDU_PRAGMA(GCC pop_options)
#endif
