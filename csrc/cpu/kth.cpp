#include "cpu/kth.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <vector>

namespace salun::cpu {

// One pass fills buckets of equal width, then only the bucket that holds the k-th is ordered.
Threshold kth_largest(std::span<const uint32_t> keys, uint32_t low, uint32_t high, int64_t k) {
  constexpr int kBucketBits = 12;
  int shift = std::max(0, int(std::bit_width(high - low)) - kBucketBits);
  auto bucket_of = [=](uint32_t key) { return (key - low) >> shift; };
  std::vector<int64_t> sizes(size_t(1) << kBucketBits);
  for (uint32_t key : keys) ++sizes[bucket_of(key)];
  size_t bucket = sizes.size() - 1;
  while (sizes[bucket] < k) k -= sizes[bucket--];
  std::vector<uint32_t> mine;
  mine.reserve(size_t(sizes[bucket]));
  for (uint32_t key : keys)
    if (bucket_of(key) == bucket) mine.push_back(key);
  auto kth = mine.begin() + (k - 1);
  std::nth_element(mine.begin(), kth, mine.end(), std::greater<>());
  uint32_t key = *kth;
  return {key, k - std::count_if(mine.begin(), kth, [=](uint32_t x) { return x > key; })};
}

}  // namespace salun::cpu
