// Ordered keys (rules/ordered_key.h) in registers, 16 at a time, and which of them pass a test: the
// one place of selection that knows instruction sets. Keys and bounds are below 2^31, so signed
// comparison is right.
//   load_keys<Largest, kNan>(values, &peak)  without kNan, keys of NaN are wrong; peak remembers
//   infinite(peak)                           whether a value was infinite or NaN
//   above(keys, bound), equal(keys, key)
//   word_of(lower, upper)                    two answers as a mask word, bit i for key i
//   tally(keys, key, &counts)                counts those that equal it; total(counts) sums them up
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "rules/ordered_key.h"
#include "rules/soft_threshold.h"

namespace salun::cpu {
namespace {

constexpr int kKeys = 16;

// fp32 scores as they lie in memory.
struct Plain {
  const float* scores;
  float at(int64_t i) const { return scores[i]; }
};

// Their differences to anchors.
struct Difference {
  const float *params, *anchors;
  float at(int64_t i) const { return soft_delta(params[i], anchors[i]); }
};

#if defined(__AVX512F__)

using Keys = __m512i;
using KeyLanes = __m512i;
using Answer = __mmask16;

KeyLanes no_lanes() { return _mm512_setzero_si512(); }

__m512i load(Plain values, int64_t i) { return _mm512_loadu_si512(values.scores + i); }

__m512i load(Difference values, int64_t i) {
  return _mm512_castps_si512(_mm512_loadu_ps(values.params + i) -
                             _mm512_loadu_ps(values.anchors + i));
}

template <bool Largest, bool kNan, class Values>
Keys load_keys(Values values, int64_t i, KeyLanes* peak) {
  __m512i bits = _mm512_and_si512(load(values, i), _mm512_set1_epi32(0x7fffffff));
  // All lanes, by a mask: GCC 12 warns of its own header's unmasked maximum.
  *peak = _mm512_maskz_max_epi32(0xffff, *peak, bits);
  __m512i key = Largest ? _mm512_add_epi32(bits, _mm512_set1_epi32(1))
                        : _mm512_sub_epi32(_mm512_set1_epi32(kKeyMax), bits);
  if (!kNan) return key;
  return _mm512_maskz_mov_epi32(_mm512_cmple_epi32_mask(bits, _mm512_set1_epi32(kInfinityBits)),
                                key);
}

bool infinite(KeyLanes peak) {
  return _mm512_cmpgt_epi32_mask(peak, _mm512_set1_epi32(kInfinityBits - 1)) != 0;
}

Answer above(Keys keys, int32_t bound) {
  return _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(bound));
}

Answer equal(Keys keys, int32_t key) {
  return _mm512_cmpeq_epi32_mask(keys, _mm512_set1_epi32(key));
}

uint32_t word_of(Answer lower, Answer upper) { return uint32_t(_mm512_kunpackw(upper, lower)); }

void tally(Keys keys, int32_t key, KeyLanes* counts) {
  *counts = _mm512_mask_add_epi32(*counts, equal(keys, key), *counts, _mm512_set1_epi32(1));
}

#elif defined(__AVX2__)

struct Keys {
  __m256i lower, upper;
};
using KeyLanes = __m256i;
using Answer = Keys;

KeyLanes no_lanes() { return _mm256_setzero_si256(); }

__m256i load(Plain values, int64_t i) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values.scores + i));
}

__m256i load(Difference values, int64_t i) {
  return _mm256_castps_si256(_mm256_loadu_ps(values.params + i) -
                             _mm256_loadu_ps(values.anchors + i));
}

template <bool Largest, bool kNan, class Values>
__m256i eight_keys(Values values, int64_t i, KeyLanes* peak) {
  __m256i bits = _mm256_and_si256(load(values, i), _mm256_set1_epi32(0x7fffffff));
  *peak = _mm256_max_epi32(*peak, bits);
  __m256i key = Largest ? _mm256_add_epi32(bits, _mm256_set1_epi32(1))
                        : _mm256_sub_epi32(_mm256_set1_epi32(kKeyMax), bits);
  if (!kNan) return key;
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(bits, _mm256_set1_epi32(kInfinityBits)), key);
}

template <bool Largest, bool kNan, class Values>
Keys load_keys(Values values, int64_t i, KeyLanes* peak) {
  return {eight_keys<Largest, kNan>(values, i, peak),
          eight_keys<Largest, kNan>(values, i + 8, peak)};
}

bool infinite(KeyLanes peak) {
  __m256i beyond = _mm256_cmpgt_epi32(peak, _mm256_set1_epi32(kInfinityBits - 1));
  return _mm256_movemask_epi8(beyond) != 0;
}

Answer above(Keys keys, int32_t bound) {
  __m256i limit = _mm256_set1_epi32(bound);
  return {_mm256_cmpgt_epi32(keys.lower, limit), _mm256_cmpgt_epi32(keys.upper, limit)};
}

Answer equal(Keys keys, int32_t key) {
  __m256i wanted = _mm256_set1_epi32(key);
  return {_mm256_cmpeq_epi32(keys.lower, wanted), _mm256_cmpeq_epi32(keys.upper, wanted)};
}

// Packing works within halves of a register, so the bytes come out in fours that are out of order.
uint32_t word_of(Answer lower, Answer upper) {
  __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(lower.lower, lower.upper),
                                     _mm256_packs_epi32(upper.lower, upper.upper));
  __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return uint32_t(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, in_order)));
}

void tally(Keys keys, int32_t key, KeyLanes* counts) {
  Answer found = equal(keys, key);  // -1 each
  *counts = _mm256_sub_epi32(*counts, _mm256_add_epi32(found.lower, found.upper));
}

#elif defined(__x86_64__)

struct Keys {
  __m128i a, b, c, d;
};
using KeyLanes = __m128i;
using Answer = Keys;

KeyLanes no_lanes() { return _mm_setzero_si128(); }

__m128i load(Plain values, int64_t i) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values.scores + i));
}

__m128i load(Difference values, int64_t i) {
  return _mm_castps_si128(_mm_loadu_ps(values.params + i) - _mm_loadu_ps(values.anchors + i));
}

// SSE2 has no maximum of these. Adding one exponent carries infinity and NaN into the sign.
template <bool Largest, bool kNan, class Values>
__m128i four_keys(Values values, int64_t i, KeyLanes* peak) {
  __m128i bits = _mm_and_si128(load(values, i), _mm_set1_epi32(0x7fffffff));
  *peak = _mm_or_si128(*peak, _mm_add_epi32(bits, _mm_set1_epi32(0x00800000)));
  __m128i key = Largest ? _mm_add_epi32(bits, _mm_set1_epi32(1))
                        : _mm_sub_epi32(_mm_set1_epi32(kKeyMax), bits);
  if (!kNan) return key;
  return _mm_andnot_si128(_mm_cmpgt_epi32(bits, _mm_set1_epi32(kInfinityBits)), key);
}

template <bool Largest, bool kNan, class Values>
Keys load_keys(Values values, int64_t i, KeyLanes* peak) {
  return {four_keys<Largest, kNan>(values, i, peak), four_keys<Largest, kNan>(values, i + 4, peak),
          four_keys<Largest, kNan>(values, i + 8, peak),
          four_keys<Largest, kNan>(values, i + 12, peak)};
}

bool infinite(KeyLanes peak) { return _mm_movemask_ps(_mm_castsi128_ps(peak)) != 0; }

Answer above(Keys keys, int32_t bound) {
  __m128i limit = _mm_set1_epi32(bound);
  return {_mm_cmpgt_epi32(keys.a, limit), _mm_cmpgt_epi32(keys.b, limit),
          _mm_cmpgt_epi32(keys.c, limit), _mm_cmpgt_epi32(keys.d, limit)};
}

Answer equal(Keys keys, int32_t key) {
  __m128i wanted = _mm_set1_epi32(key);
  return {_mm_cmpeq_epi32(keys.a, wanted), _mm_cmpeq_epi32(keys.b, wanted),
          _mm_cmpeq_epi32(keys.c, wanted), _mm_cmpeq_epi32(keys.d, wanted)};
}

uint32_t half_word(Answer answer) {
  __m128i bytes =
      _mm_packs_epi16(_mm_packs_epi32(answer.a, answer.b), _mm_packs_epi32(answer.c, answer.d));
  return uint32_t(_mm_movemask_epi8(bytes));
}

uint32_t word_of(Answer lower, Answer upper) { return half_word(lower) | half_word(upper) << 16; }

void tally(Keys keys, int32_t key, KeyLanes* counts) {
  Answer found = equal(keys, key);  // -1 each
  __m128i sum = _mm_add_epi32(_mm_add_epi32(found.a, found.b), _mm_add_epi32(found.c, found.d));
  *counts = _mm_sub_epi32(*counts, sum);
}

#else

struct Keys {
  int32_t all[kKeys];
};
using KeyLanes = int32_t;
using Answer = uint32_t;

KeyLanes no_lanes() { return 0; }

template <bool Largest, bool kNan, class Values>
Keys load_keys(Values values, int64_t i, KeyLanes* peak) {
  Keys keys;
  for (int j = 0; j < kKeys; ++j) {
    float value = values.at(i + j);
    *peak |= int32_t(!is_finite(value));
    keys.all[j] = int32_t(ordered_key<Largest>(value));
  }
  return keys;
}

bool infinite(KeyLanes peak) { return peak != 0; }

Answer above(const Keys& keys, int32_t bound) {
  uint32_t bits = 0;
  for (int i = 0; i < kKeys; ++i) bits |= uint32_t(keys.all[i] > bound) << i;
  return bits;
}

Answer equal(const Keys& keys, int32_t key) {
  uint32_t bits = 0;
  for (int i = 0; i < kKeys; ++i) bits |= uint32_t(keys.all[i] == key) << i;
  return bits;
}

uint32_t word_of(Answer lower, Answer upper) { return lower | upper << kKeys; }

void tally(const Keys& keys, int32_t key, KeyLanes* counts) {
  for (int i = 0; i < kKeys; ++i) *counts += int32_t(keys.all[i] == key);
}

#endif

int64_t total(const KeyLanes& counts) {
  int32_t lanes[sizeof counts / 4];
  memcpy(lanes, &counts, sizeof counts);
  int64_t sum = 0;
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace
}  // namespace salun::cpu
