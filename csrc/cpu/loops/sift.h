// Keys against a bracket, 4 bytes a weight: those that reached its upper end get their bits, those
// inside are kept with their places.
#pragma once
#include "cpu/loops/words.h"

namespace salun::cpu {
namespace {

// Words that hold candidates, to be looked at after the loop: without a branch in it.
struct Pending {
  uint32_t word[kRun / kWordBits], index[kRun / kWordBits];
  int64_t size = 0;

  void add(int64_t at, uint32_t inside) {
    word[size] = inside;
    index[size] = uint32_t(at);
    size += inside != 0;
  }
};

template <bool Largest>
void collect(const Pending& pending, const float* scores, int64_t first, Candidates* out) {
  for (int64_t p = 0; p < pending.size; ++p)
    for (uint32_t left = pending.word[p]; left != 0; left &= left - 1) {
      int64_t place = int64_t(pending.index[p]) * kWordBits + __builtin_ctz(left);
      out->keys[out->size] = ordered_key<Largest>(scores[place]);
      out->places[out->size++] = uint16_t(first + place);
    }
}

template <bool Largest, bool kEnds>
void sift_run(const float* scores, int64_t n, Bracket bracket, uint32_t* words, Pending* pending,
              Census* census) {
  auto low = int32_t(bracket.low), high = int32_t(bracket.high);
  Tally<Largest> at_high{high}, at_low{low};
  int64_t reached = 0;
  bool nonfinite = any_beyond(scores, n, kInfinityBits - 1);
  for_each_word<Largest>(scores, n, nonfinite, [&](int64_t w, const WordKeys& keys) {
    uint32_t chosen = keys.beyond(high - 1);
    if (words) words[w] = chosen;
    reached += ones(chosen);
    pending->add(w, keys.beyond(low) & ~chosen);
    if (kEnds) at_high.add(keys), at_low.add(keys);
  });
  census->reached += reached;
  census->at_high += kEnds ? at_high.among(n) : 0;
  census->at_low += kEnds ? at_low.among(n) : 0;
  census->nonfinite |= nonfinite;
}

template <bool Largest, bool kEnds>
void sift_as(const View& view, int64_t n, Bracket bracket, uint32_t* words, Candidates* inside,
             Census* census) {
  for_each_run(view, n, [&](const float* scores, int64_t at, int64_t count) {
    Pending pending;
    uint32_t* run = words ? words + at / kWordBits : nullptr;
    sift_run<Largest, kEnds>(scores, count, bracket, run, &pending, census);
    collect<Largest>(pending, scores, at, inside);
  });
}

void sift(const View& view, int64_t n, Bracket bracket, bool largest, uint32_t* words,
          Candidates* inside, Census* census) {
  auto as = largest ? (bracket.ends ? sift_as<true, true> : sift_as<true, false>)
                    : (bracket.ends ? sift_as<false, true> : sift_as<false, false>);
  as(view, n, bracket, words, inside, census);
}

bool any_nonfinite(const View& view, int64_t n) {
  bool any = false;
  for_each_run(view, n, [&](const float* scores, int64_t, int64_t count) {
    any |= any_beyond(scores, count, kInfinityBits - 1);
  });
  return any;
}

}  // namespace
}  // namespace salun::cpu
