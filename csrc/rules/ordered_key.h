// Scores as integers that sort like |score|: selection compares and counts keys only, so it is
// exact, and the same on every backend. A larger key is chosen first.
//   NaN -> 0 (never preferred);  largest: bits(|s|) + 1;  smallest: kKeyMax - bits(|s|).
#pragma once
#include "rules/number.h"

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kKeyMax = kInfinityBits + 1;

// Keys have 31 bits and a carry: digits of 11, 11 and 10 bits, highest first.
constexpr int kHistogramBins = 2048;
SALUN_RULE int digit_shift(int level) { return level == 0 ? 21 : level == 1 ? 10 : 0; }
SALUN_RULE int prefix_shift(int level) { return level == 0 ? 32 : level == 1 ? 21 : 10; }
SALUN_RULE uint32_t digit_mask(int level) { return level == 2 ? 1023 : 2047; }

SALUN_RULE uint32_t digit_of(uint32_t key, int level) {
  return (key >> digit_shift(level)) & digit_mask(level);
}

SALUN_RULE bool begins_with(uint32_t key, uint32_t prefix, int level) {
  return uint64_t(key) >> prefix_shift(level) == prefix;
}

// The prefix of the next level.
SALUN_RULE uint32_t append_digit(uint32_t prefix, uint32_t digit, int level) {
  return level == 0 ? digit : prefix << (prefix_shift(level) - digit_shift(level)) | digit;
}

template <bool Largest>
SALUN_RULE uint32_t ordered_key(float score) {
  uint32_t bits = float_bits(score) & 0x7fffffffu;
  uint32_t key = Largest ? bits + 1 : kKeyMax - bits;
  return bits > kInfinityBits ? 0 : key;
}

SALUN_RULE float key_magnitude(uint32_t key, bool largest) {
  if (key == 0) return bits_float(0x7fc00000u);
  return bits_float(largest ? key - 1 : kKeyMax - key);
}
