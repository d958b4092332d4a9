// Stochastic rounding to bf16 (Gupta et al. 2015): up or down with probability by distance, so that
// updates far below the last bit are right on average. The random bits are a function of seed, step
// and flat index alone: the same on every backend, for any threads and any cut into chunks.
#pragma once
#include "rules/number.h"

struct RoundingKey {
  uint32_t first, second;
};

// Steele, Lea, Flood 2014: the finaliser of SplitMix64.
SALUN_RULE uint64_t split_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Of the t-th step of a parameter.
SALUN_RULE RoundingKey rounding_key(int64_t seed, float t) {
  uint64_t key = split_mix(split_mix(uint64_t(seed)) ^ uint64_t(t));
  return {uint32_t(key), uint32_t(key >> 32)};
}

// Wellons' lowbias32: a bijection in which every input bit flips about half of the output.
SALUN_RULE uint32_t low_bias(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// 16 bits, uniform over the elements of a step and over the steps of an element.
SALUN_RULE uint32_t rounding_bits(RoundingKey key, uint64_t index) {
  uint32_t mixed = low_bias(uint32_t(index) ^ key.first);
  return low_bias(mixed ^ uint32_t(index >> 32) ^ key.second) >> 16;
}

// Numbers that bf16 holds stay as they are.
SALUN_RULE uint16_t stochastic_bfloat16(float value, uint32_t random) {
  uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffffu;
  uint32_t carried = bits + (magnitude < 0x7f800000u ? random : 0u);
  return magnitude > 0x7f800000u ? uint16_t(0x7fc0u) : uint16_t(carried >> 16);
}
