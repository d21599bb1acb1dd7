// SPDX-License-Identifier: MIT
// In place of torch's ATen/Parallel.h where ThreadSanitizer is to watch the loops (setup.py): std::thread, which it
// understands, for OpenMP, of which it does not see who waits for whom. A thread for each index, so that two indices
// that write the same memory are a race whatever the number of threads would have been; batches of them, to be kind.
//
// DDU_PLANTED_RACE=1 does every index once more than it is asked for, in a thread of its own: to show that it is seen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace at {

// Any number: how much is worked on at a time goes by it, and no result.
inline int get_num_threads() { return 8; }

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t /*grain_size*/, const F& f) {
  constexpr int64_t kMostThreads = 64;
  const int64_t twice = std::getenv("DDU_PLANTED_RACE") == nullptr ? 1 : 2;
  const int64_t step = std::max<int64_t>(1, (end - begin + kMostThreads - 1) / kMostThreads);
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += step) {
    for (int64_t time = 0; time < twice; ++time) {
      threads.emplace_back([&f, first, last = std::min(first + step, end)] { f(first, last); });
    }
  }
  for (auto& thread : threads) {
    thread.join();
  }
}

}  // namespace at
