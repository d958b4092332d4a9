// Packed masks: bit i of a word belongs to element i of its run of 32.
#pragma once
#include "rules/platform.h"

constexpr int kWordBits = 32;

SALUN_RULE int64_t word_count(int64_t numel) { return (numel + kWordBits - 1) / kWordBits; }

// The bits of a word that belong to the `left` elements from its first on.
SALUN_RULE uint32_t valid_bits(int64_t left) {
  return left >= kWordBits ? ~uint32_t(0) : ~uint32_t(0) >> (kWordBits - left);
}

// Ranks count the bits that are 1 before each run of this many elements, and last of all in all.
constexpr int64_t kRankRun = 4096;

SALUN_RULE int64_t rank_count(int64_t numel) { return (numel + kRankRun - 1) / kRankRun + 1; }

#if defined(__x86_64__) && !defined(__AVX2__) && !defined(__CUDACC__)
// SSE2 cannot shift lanes by different amounts: load the single bits instead.
constexpr uint32_t kSingleBits[kWordBits] = {
    1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
    1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
    1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
    1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
SALUN_RULE uint32_t single_bit(int i) { return kSingleBits[i]; }
#else
SALUN_RULE uint32_t single_bit(int i) { return uint32_t(1) << i; }
#endif

// Not 0 where bit i is set. An integer, not a bool: GCC 12 vectorises a choice on it.
SALUN_RULE uint32_t bit(uint32_t word, int i) { return word & single_bit(i); }
