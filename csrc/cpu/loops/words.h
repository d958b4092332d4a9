// Scores as keys, a mask word's worth at a time.
#pragma once
#include "cpu/loops/keys.h"
#include "cpu/loops/view.h"
#include "rules/bits.h"

namespace salun::cpu {
namespace {

int64_t ones(uint32_t word) {
#if defined(__x86_64__) && !defined(__POPCNT__)  // else a call into a table of bytes
  word -= (word >> 1) & 0x55555555u;
  word = (word & 0x33333333u) + ((word >> 2) & 0x33333333u);
  return ((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
#else
  return __builtin_popcount(word);
#endif
}

// The lowest `count` ones of a word.
uint32_t first_ones(uint32_t word, int64_t count) {
  if (count >= ones(word)) return word;
  uint32_t rest = word;
  for (int64_t i = 0; i < count; ++i) rest &= rest - 1;
  return word ^ rest;
}

bool any_beyond(const float* scores, int64_t n, uint32_t limit) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    auto bits = int32_t(float_bits(scores[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return uint32_t(largest) > limit;
}

// The keys of one word. `valid` has the bits of the elements that exist.
struct WordKeys {
  Keys lower, upper;
  uint32_t valid;

  uint32_t beyond(int32_t bound) const {
    return word_of(above(lower, bound), above(upper, bound)) & valid;
  }
  uint32_t at(int32_t key) const { return word_of(equal(lower, key), equal(upper, key)) & valid; }
};

template <bool Largest, bool kNan>
WordKeys load_word(const float* scores, uint32_t valid) {
  return {load_keys<Largest, kNan>(scores), load_keys<Largest, kNan>(scores + kKeys), valid};
}

template <bool Largest, bool kNan, class Body>
void for_each_word_of(const float* scores, int64_t n, Body& body) {
  int64_t full = n / kWordBits, left = n % kWordBits;
  for (int64_t w = 0; w < full; ++w)
    body(w, load_word<Largest, kNan>(scores + w * kWordBits, ~uint32_t(0)));
  if (left == 0) return;
  float padded[kWordBits] = {};
  for (int64_t i = 0; i < left; ++i) padded[i] = scores[full * kWordBits + i];
  body(full, load_word<Largest, kNan>(padded, ~uint32_t(0) >> (kWordBits - left)));
}

// Calls body(index, keys) for every word; the last is padded with zeros, whose bits are not valid.
// Only runs that hold a NaN pay for sorting it last.
template <bool Largest, class Body>
void for_each_word(const float* scores, int64_t n, bool nan, Body body) {
  nan ? for_each_word_of<Largest, true>(scores, n, body)
      : for_each_word_of<Largest, false>(scores, n, body);
}

// How many keys equal one: in lanes, so that the loop needs no word of them.
template <bool Largest>
struct Tally {
  int32_t key;
  Lanes lanes = no_lanes();

  void add(const WordKeys& keys) {
    tally(keys.lower, key, &lanes);
    tally(keys.upper, key, &lanes);
  }
  // Of n scores, without the zeros that filled up their last word.
  int64_t among(int64_t n) const {
    bool filled = key == int32_t(ordered_key<Largest>(0.0f));
    return total(lanes) - (filled ? -n & (kWordBits - 1) : 0);
  }
};

}  // namespace
}  // namespace salun::cpu
