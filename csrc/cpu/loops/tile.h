// Moving a tile between memory and fp32: the only code that knows dtypes. Updates see fp32 and
// write in place; a half parameter is updated in a tile and written back at its stored type where
// the bit is 1, so that a frozen weight keeps its bytes.
#pragma once
#include <type_traits>

#include "cpu/loops/loops.h"
#include "formats.h"
#include "rules/bits.h"

namespace salun::cpu {
namespace {

const float* load(const void* data, Dtype dtype, int64_t n, float* tile) {
  if (dtype == Dtype::f32) return static_cast<const float*>(data);
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    auto* raw = static_cast<const typename Format::Raw*>(data);
    for (int64_t i = 0; i < n; ++i) tile[i] = Format::decode(raw[i]);
  });
  return tile;
}

// The gradient as the step uses it: unscaled, and negated for ascent.
const float* load_gradient(const void* grad, Dtype dtype, int64_t n, bool maximize,
                           float grad_scale, float* tile) {
  const float* g = load(grad, dtype, n, tile);
  if (grad_scale != 1.0f) {
    for (int64_t i = 0; i < n; ++i) tile[i] = g[i] / grad_scale;
    g = tile;
  }
  if (maximize) {
    for (int64_t i = 0; i < n; ++i) tile[i] = -g[i];
    g = tile;
  }
  return g;
}

// Calls element(i, keep) for the weights of every word that has one to move; keep is 0 where the
// weight is frozen, and the element must then write back what it read. Elements do not depend on
// each other, so the inner loop vectorises.
template <class Element>
void for_each_moving_word(const uint32_t* words, int64_t n, Element element) {
  for (int64_t base = 0; base < n; base += kWordBits) {
    uint32_t word = words ? words[base / kWordBits] : ~uint32_t(0);
    if (word == 0) continue;
    if (n - base >= kWordBits) {
#pragma GCC ivdep
      for (int i = 0; i < kWordBits; ++i) element(base + i, bit(word, i));
    } else {
#pragma GCC ivdep
      for (int i = 0; i < int(n - base); ++i) element(base + i, bit(word, i));
    }
  }
}

template <class T>
T* advance(T* data, Dtype dtype, int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<Byte*>(data) + elements * size_of(dtype);
}

// `n` weights from `at` as fp32 values to update in place: the memory itself where it is fp32.
float* open_weights(const Weights& weights, int64_t at, int64_t n, float* tile) {
  if (weights.master) return weights.master + at;
  return const_cast<float*>(load(advance(weights.data, weights.dtype, at), weights.dtype, n, tile));
}

void store_stochastic(const Weights& weights, int64_t at, const float* tile, const uint32_t* words,
                      int64_t n) {
  auto* raw = static_cast<uint16_t*>(weights.data) + at;
  RoundingKey key = weights.key;
  uint64_t first = weights.index + uint64_t(at);
  for_each_moving_word(words, n, [=](int64_t i, uint32_t keep) {
    uint16_t old = raw[i];
    uint16_t moved = stochastic_bfloat16(tile[i], rounding_bits(key, first + uint64_t(i)));
    raw[i] = keep ? moved : old;
  });
}

// Writes updated half weights at their stored type, where the bit is 1.
void close_weights(const Weights& weights, int64_t at, const float* tile, const uint32_t* words,
                   int64_t n) {
  if (weights.dtype == Dtype::f32) return;
  if (weights.stochastic) return store_stochastic(weights, at, tile, words, n);
  with_format(weights.dtype, [&](auto format) {
    using Format = decltype(format);
    auto* raw = static_cast<typename Format::Raw*>(weights.data) + at;
    for_each_moving_word(words, n, [=](int64_t i, uint32_t keep) {
      typename Format::Raw moved = Format::encode(tile[i]), old = raw[i];
      raw[i] = keep ? moved : old;
    });
  });
}

}  // namespace
}  // namespace salun::cpu
