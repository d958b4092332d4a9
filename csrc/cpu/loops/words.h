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

// The keys of one word. `valid` has the bits of the elements that exist.
struct WordKeys {
  Keys lower, upper;
  uint32_t valid;

  uint32_t beyond(int32_t bound) const {
    return word_of(above(lower, bound), above(upper, bound)) & valid;
  }
  uint32_t at(int32_t key) const { return word_of(equal(lower, key), equal(upper, key)) & valid; }
};

template <bool Largest, bool kNan, class Values>
WordKeys load_word(Values values, int64_t i, uint32_t valid, KeyLanes* peak) {
  Keys lower = load_keys<Largest, kNan>(values, i, peak);
  return {lower, load_keys<Largest, kNan>(values, i + kKeys, peak), valid};
}

// Calls body(index, keys) for every word; the last is padded with zeros, whose bits are not valid.
// Returns whether a value was infinite or NaN. Without kNan, the keys of NaN were wrong then.
template <bool Largest, bool kNan, class Values, class Body>
bool for_each_word(Values values, int64_t n, Body body) {
  KeyLanes peak = no_lanes();
  int64_t whole = n & -kWordBits;
  for (int64_t i = 0; i < whole; i += kWordBits)
    body(i / kWordBits, load_word<Largest, kNan>(values, i, ~uint32_t(0), &peak));
  if (whole < n) {
    float padded[kWordBits] = {};
    for (int64_t i = whole; i < n; ++i) padded[i - whole] = values.at(i);
    uint32_t valid = ~uint32_t(0) >> (whole + kWordBits - n);
    body(whole / kWordBits, load_word<Largest, kNan>(Plain{padded}, 0, valid, &peak));
  }
  return infinite(peak);
}

// How many keys equal one: in lanes, so that the loop needs no word of them.
template <bool Largest>
struct Tally {
  int32_t key;
  KeyLanes lanes = no_lanes();

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
