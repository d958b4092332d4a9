// The k-th key by histograms of its digits: for short lists, for several processes (between
// all-reduces), and where a sample misled.
#pragma once
#include "cpu/kth.h"
#include "cpu/source.h"

namespace salun::cpu {

void count_digits(const Source& source, uint32_t prefix, int level, bool largest,
                  std::span<int64_t> counts);  // [kHistogramBins], written

Threshold kth_by_digits(const Source& source, int64_t k, bool largest);

}  // namespace salun::cpu
