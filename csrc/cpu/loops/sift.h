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

template <bool Largest, class Values>
void collect(const Pending& pending, Values values, int64_t first, Candidates* out) {
  for (int64_t p = 0; p < pending.size; ++p)
    for (uint32_t left = pending.word[p]; left != 0; left &= left - 1) {
      int64_t place = int64_t(pending.index[p]) * kWordBits + __builtin_ctz(left);
      out->keys[out->size] = ordered_key<Largest>(values.at(place));
      out->places[out->size++] = uint16_t(first + place);
    }
}

// The census of this run alone.
template <bool Largest, bool kEnds, bool kNan, class Values>
Census look_at(Values values, int64_t n, Bracket bracket, uint32_t* words, Pending* pending) {
  auto low = int32_t(bracket.low), high = int32_t(bracket.high);
  Tally<Largest> at_high{high}, at_low{low};
  Census census{};
  census.nonfinite = for_each_word<Largest, kNan>(values, n, [&](int64_t w, const WordKeys& keys) {
    uint32_t chosen = keys.beyond(high - 1);
    if (words) words[w] = chosen;
    census.reached += ones(chosen);
    pending->add(w, keys.beyond(low) & ~chosen);
    if (kEnds) at_high.add(keys), at_low.add(keys);
  });
  if (kEnds) census.at_high = at_high.among(n), census.at_low = at_low.among(n);
  return census;
}

// A run that holds NaN is looked at again: the others need not sort them last.
template <bool Largest, bool kEnds, class Values>
void sift_run(Values values, int64_t at, int64_t n, Bracket bracket, uint32_t* words,
              Candidates* inside, Census* census) {
  uint32_t* run = words ? words + at / kWordBits : nullptr;
  Pending pending;
  Census found = look_at<Largest, kEnds, false>(values, n, bracket, run, &pending);
  if (found.nonfinite) {
    pending.size = 0;
    found = look_at<Largest, kEnds, true>(values, n, bracket, run, &pending);
  }
  collect<Largest>(pending, values, at, inside);
  census->reached += found.reached;
  census->at_high += found.at_high;
  census->at_low += found.at_low;
  census->nonfinite |= found.nonfinite;
}

// Differences of fp32 are taken in registers, not in a tile: the loop then reads memory all the
// time.
template <bool Largest, bool kEnds>
void sift_as(const View& view, int64_t n, Bracket bracket, uint32_t* words, Candidates* inside,
             Census* census) {
  if (view.anchor && view.dtype == Dtype::f32) {
    auto *params = static_cast<const float*>(view.data),
         *anchors = static_cast<const float*>(view.anchor);
    for (int64_t at = 0; at < n; at += kRun)
      sift_run<Largest, kEnds>(Difference{params + at, anchors + at}, at,
                               n - at < kRun ? n - at : kRun, bracket, words, inside, census);
    return;
  }
  for_each_run(view, n, [&](const float* scores, int64_t at, int64_t count) {
    sift_run<Largest, kEnds>(Plain{scores}, at, count, bracket, words, inside, census);
  });
}

void sift(const View& view, int64_t n, Bracket bracket, bool largest, uint32_t* words,
          Candidates* inside, Census* census) {
  auto as = largest ? (bracket.ends ? sift_as<true, true> : sift_as<true, false>)
                    : (bracket.ends ? sift_as<false, true> : sift_as<false, false>);
  as(view, n, bracket, words, inside, census);
}

bool any_nonfinite(const View& view, int64_t n) {
  uint32_t any = 0;
  for_each_run(view, n, [&](const float* scores, int64_t, int64_t count) {
    for (int64_t i = 0; i < count; ++i) any |= uint32_t(!is_finite(scores[i]));
  });
  return any != 0;
}

}  // namespace
}  // namespace salun::cpu
