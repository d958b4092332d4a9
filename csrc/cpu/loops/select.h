// Three ways to look at scores: against a bracket, by digit, and against the threshold. Each reads
// 4 bytes a weight once; no key is ever stored for more than 32 elements at a time.
#pragma once
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/loops/tile.h"
#include "rules/ordered_key.h"

namespace salun::cpu {
namespace {

template <bool Largest>
void census_of(const float* scores, int64_t n, Bracket bracket, uint32_t* candidates,
               Census* census) {
  uint32_t low = bracket.low, high = bracket.high, width = high > low ? high - low - 1 : 0;
  uint32_t nonfinite = 0;
  for (int64_t base = 0; base < n; base += kWordBits) {
    int count = n - base < kWordBits ? int(n - base) : kWordBits;
    uint32_t keys[kWordBits];
    uint32_t above = 0, at_high = 0, inside = 0, at_low = 0;
    auto look = [&](int i) {
      float score = scores[base + i];
      uint32_t key = ordered_key<Largest>(score);
      keys[i] = key;
      above += key > high;
      at_high += key == high;
      inside += key - low - 1 < width;
      at_low += key == low;
      nonfinite |= (float_bits(score) & 0x7fffffffu) >= kInfinityBits;
    };
    if (count == kWordBits)
      for (int i = 0; i < kWordBits; ++i) look(i);
    else
      for (int i = 0; i < count; ++i) look(i);
    census->above += above;
    census->at_high += at_high;
    census->at_low += at_low;
    for (int i = 0; inside != 0 && i < count; ++i)
      if (keys[i] - low - 1 < width) candidates[census->inside++] = keys[i];
  }
  census->nonfinite |= nonfinite != 0;
}

void take_census(const float* scores, int64_t n, Bracket bracket, bool largest,
                 uint32_t* candidates, Census* census) {
  largest ? census_of<true>(scores, n, bracket, candidates, census)
          : census_of<false>(scores, n, bracket, candidates, census);
}

template <bool Largest>
void count_digits(const float* scores, int64_t n, uint32_t prefix, int level, int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = ordered_key<Largest>(scores[i]);
    if (uint64_t(key) >> kPrefixShift[level] == prefix)
      ++counts[(key >> kDigitShift[level]) & kDigitMask[level]];
  }
}

void histogram(const float* scores, int64_t n, uint32_t prefix, int level, bool largest,
               int64_t* counts) {
  largest ? count_digits<true>(scores, n, prefix, level, counts)
          : count_digits<false>(scores, n, prefix, level, counts);
}

// Bit i: keys[i] > bound. Keys and bounds are below 2^31, so signed comparison is right.
uint32_t bits_above(const int32_t* keys, int32_t bound) {
#if defined(__AVX512F__)
  __m512i limit = _mm512_set1_epi32(bound);
  uint32_t lower = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(keys), limit);
  uint32_t upper = _mm512_cmpgt_epi32_mask(_mm512_loadu_si512(keys + 16), limit);
  return lower | upper << 16;
#elif defined(__AVX2__)
  __m256i limit = _mm256_set1_epi32(bound);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + 8 * i));
    __m256 above = _mm256_castsi256_ps(_mm256_cmpgt_epi32(eight, limit));
    word |= uint32_t(_mm256_movemask_ps(above)) << (8 * i);
  }
  return word;
#else
  uint32_t word = 0;
  for (int i = 0; i < kWordBits; ++i) word |= uint32_t(keys[i] > bound) << i;
  return word;
#endif
}

template <bool Largest>
int64_t pack_as(const float* scores, int64_t n, uint32_t threshold, uint32_t* words) {
  int64_t ties = 0;
  int32_t above = int32_t(threshold);
  for (int64_t base = 0; base < n; base += kWordBits) {
    int count = n - base < kWordBits ? int(n - base) : kWordBits;
    int32_t keys[kWordBits];
    uint32_t valid = ~uint32_t(0);
    if (count == kWordBits) {
      for (int i = 0; i < kWordBits; ++i) keys[i] = int32_t(ordered_key<Largest>(scores[base + i]));
    } else {
      for (int i = 0; i < kWordBits; ++i)
        keys[i] = i < count ? int32_t(ordered_key<Largest>(scores[base + i])) : 0;
      valid >>= kWordBits - count;
    }
    uint32_t greater = bits_above(keys, above);
    uint32_t reached = bits_above(keys, above - 1) & valid;
    ties += __builtin_popcount(reached ^ greater);
    words[base / kWordBits] = reached;
  }
  return ties;
}

int64_t pack(const float* scores, int64_t n, uint32_t threshold, bool largest, uint32_t* words) {
  return largest ? pack_as<true>(scores, n, threshold, words)
                 : pack_as<false>(scores, n, threshold, words);
}

}  // namespace
}  // namespace salun::cpu
