// The k-th largest of keys that lie in memory.
#pragma once
#include <cstdint>
#include <span>

namespace salun::cpu {

struct Threshold {
  uint32_t key;
  int64_t ties;  // keys equal to `key` that are among the k
};

// k in 1..keys.size(). All keys lie in low..high.
Threshold kth_largest(std::span<const uint32_t> keys, uint32_t low, uint32_t high, int64_t k);

}  // namespace salun::cpu
