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

// Bit i: keys[i] > bound. Keys and bounds are below 2^31, so signed comparison is right.
uint32_t bits_above(const int32_t* keys, int32_t bound) {
#if defined(__AVX512F__)
  __m512i limit = _mm512_set1_epi32(bound);
  // Both loads first: a call between the comparisons (a sanitizer's) would spill the first mask,
  // and GCC 12 reloads 32 bits of the 16 it stored.
  __m512i front = _mm512_loadu_si512(keys), back = _mm512_loadu_si512(keys + 16);
  uint32_t lower = _mm512_cmpgt_epi32_mask(front, limit);
  uint32_t upper = _mm512_cmpgt_epi32_mask(back, limit);
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

bool any_nonfinite(const float* scores, int64_t n) {
  uint32_t any = 0;
  for (int64_t i = 0; i < n; ++i) any |= uint32_t(!is_finite(scores[i]));
  return any != 0;
}

// Keys of one word's worth; past the end they are 0, which exceeds no bound that is asked for.
template <bool Largest>
void word_keys(const float* scores, int64_t left, int32_t* keys) {
  if (left >= kWordBits) {
    for (int i = 0; i < kWordBits; ++i) keys[i] = int32_t(ordered_key<Largest>(scores[i]));
  } else {
    for (int i = 0; i < kWordBits; ++i)
      keys[i] = i < left ? int32_t(ordered_key<Largest>(scores[i])) : 0;
  }
}

template <bool Largest>
void census_of(const float* scores, int64_t n, Bracket bracket, uint32_t* candidates,
               Census* census) {
  int32_t low = int32_t(bracket.low), high = int32_t(bracket.high);
  int32_t keys[kWordBits];
  for (int64_t base = 0; base < n; base += kWordBits) {
    word_keys<Largest>(scores + base, n - base, keys);
    uint32_t valid = valid_bits(n - base);
    uint32_t above_high = bits_above(keys, high), from_high = bits_above(keys, high - 1) & valid;
    uint32_t above_low = bits_above(keys, low), from_low = bits_above(keys, low - 1) & valid;
    census->above += __builtin_popcount(above_high);
    census->at_high += __builtin_popcount(from_high ^ above_high);
    census->at_low += __builtin_popcount(from_low ^ above_low);
    for (uint32_t inside = above_low & ~from_high; inside != 0; inside &= inside - 1)
      candidates[census->inside++] = uint32_t(keys[__builtin_ctz(inside)]);
  }
  census->nonfinite |= any_nonfinite(scores, n);
}

void take_census(const float* scores, int64_t n, Bracket bracket, bool largest,
                 uint32_t* candidates, Census* census) {
  for (int64_t at = 0; at < n; at += kTile) {
    int64_t count = n - at < kTile ? n - at : kTile;
    largest ? census_of<true>(scores + at, count, bracket, candidates, census)
            : census_of<false>(scores + at, count, bracket, candidates, census);
  }
}

template <bool Largest>
void count_digits(const float* scores, int64_t n, uint32_t prefix, int level, int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t key = ordered_key<Largest>(scores[i]);
    if (begins_with(key, prefix, level)) ++counts[digit_of(key, level)];
  }
}

void histogram(const float* scores, int64_t n, uint32_t prefix, int level, bool largest,
               int64_t* counts) {
  largest ? count_digits<true>(scores, n, prefix, level, counts)
          : count_digits<false>(scores, n, prefix, level, counts);
}

template <bool Largest>
int64_t pack_as(const float* scores, int64_t n, uint32_t threshold, uint32_t* words) {
  int64_t ties = 0;
  int32_t keys[kWordBits], bound = int32_t(threshold);
  for (int64_t base = 0; base < n; base += kWordBits) {
    word_keys<Largest>(scores + base, n - base, keys);
    uint32_t reached = bits_above(keys, bound - 1) & valid_bits(n - base);
    ties += __builtin_popcount(reached ^ bits_above(keys, bound));
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
