// The counting form of selection: keys by their digits, and against the threshold.
#pragma once
#include "cpu/loops/words.h"

namespace salun::cpu {
namespace {

template <bool Largest>
void count_digits(const View& view, int64_t n, uint32_t prefix, int level, int64_t* counts) {
  for_each_run(view, n, [&](const float* scores, int64_t, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      uint32_t key = ordered_key<Largest>(scores[i]);
      if (begins_with(key, prefix, level)) ++counts[digit_of(key, level)];
    }
  });
}

void histogram(const View& view, int64_t n, uint32_t prefix, int level, bool largest,
               int64_t* counts) {
  largest ? count_digits<true>(view, n, prefix, level, counts)
          : count_digits<false>(view, n, prefix, level, counts);
}

template <bool Largest>
int64_t pack_as(const View& view, int64_t n, uint32_t threshold, int64_t wanted, uint32_t* words) {
  auto bound = int32_t(threshold);
  int64_t ties = 0;
  for_each_run(view, n, [&](const float* scores, int64_t at, int64_t count) {
    uint32_t* run = words + at / kWordBits;
    for_each_word<Largest, true>(Plain{scores}, count, [&](int64_t w, const WordKeys& keys) {
      uint32_t tied = keys.at(bound);
      run[w] = keys.beyond(bound) | (ties < wanted ? first_ones(tied, wanted - ties) : 0);
      ties += ones(tied);
    });
  });
  return ties;
}

int64_t pack(const View& view, int64_t n, uint32_t threshold, int64_t wanted, bool largest,
             uint32_t* words) {
  return largest ? pack_as<true>(view, n, threshold, wanted, words)
                 : pack_as<false>(view, n, threshold, wanted, words);
}

}  // namespace
}  // namespace salun::cpu
