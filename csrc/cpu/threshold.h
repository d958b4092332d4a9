// The exact k-th key of a source, and how many of its ties belong to the k.
#pragma once
#include <cstdint>
#include <span>

#include "cpu/source.h"

namespace salun::cpu {

struct Threshold {
  uint32_t key;
  int64_t ties;  // keys equal to `key` that are among the k
};

// k in 1..N. Throws std::runtime_error naming the position in the list where a value is NaN or
// infinite, unless allow_nonfinite.
Threshold find_threshold(const Source& source, int64_t k, bool largest, bool allow_nonfinite);

// The same by digits alone, as several processes do it between all-reduces.
void count_digits(const Source& source, uint32_t prefix, int level, bool largest,
                  std::span<int64_t> counts);  // [kHistogramBins], written

void refuse_nonfinite(const Source& source);

}  // namespace salun::cpu
