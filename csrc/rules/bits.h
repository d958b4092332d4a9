// Packed masks: bit i of a word belongs to element i of its run of 32.
#pragma once
#include "rules/platform.h"

constexpr int kWordBits = 32;

SALUN_RULE int64_t word_count(int64_t numel) { return (numel + kWordBits - 1) / kWordBits; }

SALUN_RULE bool bit(uint32_t word, int i) { return (word & (uint32_t(1) << i)) != 0; }
