// The selected weights of a tile side by side, and back to their places.
#pragma once
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/loops/tile.h"

namespace salun::cpu {
namespace {

// One element.
struct OneLane {
  static constexpr int kLanes = 1;
  static void compress(const float* from, uint32_t, float* to) { *to = *from; }
  static void expand(const float* from, uint32_t, float* to) { *to = *from; }
};

#if defined(__AVX512F__)
// Compressed in a register and stored whole: Zen 4 compresses to memory by microcode, 20 times
// slower.
struct Lanes {
  static constexpr int kLanes = 16;
  static void compress(const float* from, uint32_t bits, float* to) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(bits), _mm512_loadu_ps(from)));
  }
  static void expand(const float* from, uint32_t bits, float* to) {
    __m512 old = _mm512_loadu_ps(to), moved = _mm512_loadu_ps(from);
    _mm512_storeu_ps(to, _mm512_mask_expand_ps(old, __mmask16(bits), moved));
  }
};
#elif defined(__AVX2__)
// For each of the 256 sets of eight lanes, a byte per lane: the lane that comes to it.
struct Permutations {
  uint64_t compress[256], expand[256];

  constexpr Permutations() : compress(), expand() {
    for (uint32_t bits = 0; bits < 256; ++bits)
      for (uint64_t lane = 0, taken = 0; lane < 8; ++lane) {
        if ((bits >> lane & 1) == 0) continue;
        compress[bits] |= lane << (8 * taken);
        expand[bits] |= taken++ << (8 * lane);
      }
  }
};
constexpr Permutations kPermutations;

struct Lanes {
  static constexpr int kLanes = 8;
  static void compress(const float* from, uint32_t bits, float* to) {
    _mm256_storeu_ps(to, permuted(from, kPermutations.compress[bits]));
  }
  static void expand(const float* from, uint32_t bits, float* to) {
    const __m256i single = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(int(bits)), single);
    __m256 mask = _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, single));
    __m256 moved = permuted(from, kPermutations.expand[bits]);
    _mm256_storeu_ps(to, _mm256_blendv_ps(_mm256_loadu_ps(to), moved, mask));
  }

 private:
  static __m256 permuted(const float* from, uint64_t lanes) {
    __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(lanes)));
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), order);
  }
};
#else
using Lanes = OneLane;
#endif

constexpr int64_t kRoom = kTile + Lanes::kLanes;  // whole vectors are stored and read at any place

// Both call body(lanes, i, bits, place) for all ones of a word, several or one at a time: elements
// from i on, `place` ones before them. They return how many ones there are up to here.
template <class Body>
int64_t for_each_one(uint32_t word, int64_t first, int64_t place, Body body) {
  for (; word != 0; word &= word - 1) body(OneLane{}, first + __builtin_ctz(word), 1, place++);
  return place;
}

template <class Body>
int64_t for_each_vector(uint32_t word, int64_t first, int64_t place, Body body) {
  if constexpr (Lanes::kLanes == 1) return for_each_one(word, first, place, body);
  for (int i = 0; i < kWordBits; i += Lanes::kLanes) {
    uint32_t bits = word >> i & (~uint32_t(0) >> (kWordBits - Lanes::kLanes));
    body(Lanes{}, first + i, bits, place);
    place += __builtin_popcount(bits);
  }
  return place;
}

// The same for n elements; a word of zeros is all that is read there.
template <class Body>
int64_t for_each_selected(const uint32_t* words, int64_t n, Body body) {
  int64_t place = 0;
  for (int64_t base = 0; base < n; base += kWordBits) {
    uint32_t word = words[base / kWordBits];
    if (word == 0) continue;
    place = n - base >= kWordBits ? for_each_vector(word, base, place, body)
                                  : for_each_one(word & valid_bits(n - base), base, place, body);
  }
  return place;
}

// Calls update(g, p, count) with the selected of n weights and their gradients, and puts the
// weights back. Returns how many they are.
template <class Update>
int64_t update_selected(const float* g, float* p, const uint32_t* words, int64_t n, Update update) {
  float some_g[kRoom], some_p[kRoom];
  int64_t count =
      for_each_selected(words, n, [&](auto lanes, int64_t i, uint32_t bits, int64_t to) {
        lanes.compress(g + i, bits, some_g + to);
        lanes.compress(p + i, bits, some_p + to);
      });
  update(some_g, some_p, count);
  for_each_selected(words, n, [&](auto lanes, int64_t i, uint32_t bits, int64_t from) {
    lanes.expand(some_p + from, bits, p + i);
  });
  return count;
}

int64_t count_ones(const uint32_t* words, int64_t n) {
  int64_t ones = 0;
  for (int64_t i = 0; i < n / kWordBits; ++i) ones += __builtin_popcount(words[i]);
  if (int64_t rest = n % kWordBits)
    ones += __builtin_popcount(words[n / kWordBits] & valid_bits(rest));
  return ones;
}

}  // namespace
}  // namespace salun::cpu
