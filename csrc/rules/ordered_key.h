// Scores as integers that sort like |score|: selection compares and counts keys only, so it is
// exact, and the same on every backend. A larger key is chosen first.
//   NaN -> 0 (never preferred);  largest: bits(|s|) + 1;  smallest: kKeyMax - bits(|s|).
#pragma once
#include "rules/number.h"

constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kKeyMax = kInfinityBits + 1;

// Keys have 31 bits and a carry: digits of 11, 11 and 10 bits, highest first.
constexpr int kHistogramBins = 2048;
constexpr int kDigitShift[3] = {21, 10, 0};
constexpr int kPrefixShift[3] = {32, 21, 10};
constexpr uint32_t kDigitMask[3] = {2047, 2047, 1023};

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
