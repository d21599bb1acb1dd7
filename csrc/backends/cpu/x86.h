// SPDX-License-Identifier: MIT
// Compiles what stands between DDU_TARGET_BEGIN and DDU_TARGET_END for an instruction set, and nothing else of a file.
// Headers are to be included before: their inline functions are shared by all files of the program.
#pragma once

#define DDU_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define DDU_TARGET_BEGIN(set) DDU_PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define DDU_TARGET_END DDU_PRAGMA(clang attribute pop)
#else
#define DDU_TARGET_BEGIN(set) DDU_PRAGMA(GCC push_options) DDU_PRAGMA(GCC target(set))
#define DDU_TARGET_END DDU_PRAGMA(GCC pop_options)
#endif
