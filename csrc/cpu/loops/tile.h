// Moving a tile between memory and fp32: the only code that knows dtypes. Updates compute a whole
// tile as if every weight moved; commit() writes back those whose bit is 1, at the stored type, so
// that a frozen weight keeps its bytes.
#pragma once
#include <type_traits>

#include "cpu/loops/loops.h"
#include "rules/bits.h"

namespace salun::cpu {
namespace {

template <class T>
const float* load_as(const T* data, int64_t n, float* tile) {
  for (int64_t i = 0; i < n; ++i) tile[i] = to_float(data[i]);
  return tile;
}

const float* load(const void* data, Dtype dtype, int64_t n, float* tile) {
  switch (dtype) {
    case Dtype::f32: return static_cast<const float*>(data);
    case Dtype::f16: return load_as(static_cast<const Half*>(data), n, tile);
    default: return load_as(static_cast<const BFloat16*>(data), n, tile);
  }
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

template <class T>
void commit_as(T* target, const float* tile, const uint32_t* words, int64_t n) {
  for (int64_t base = 0; base < n; base += kWordBits) {
    uint32_t word = words ? words[base / kWordBits] : ~uint32_t(0);
    if (word == 0) continue;
    T* out = target + base;
    const float* in = tile + base;
    if (n - base >= kWordBits) {
      for (int i = 0; i < kWordBits; ++i) {
        T value, old = out[i];
        from_float(in[i], value);
        out[i] = bit(word, i) ? value : old;
      }
    } else {
      for (int i = 0; i < int(n - base); ++i)
        if (bit(word, i)) from_float(in[i], out[i]);
    }
  }
}

void commit(void* target, Dtype dtype, const float* tile, const uint32_t* words, int64_t n) {
  switch (dtype) {
    case Dtype::f32: return commit_as(static_cast<float*>(target), tile, words, n);
    case Dtype::f16: return commit_as(static_cast<Half*>(target), tile, words, n);
    default: return commit_as(static_cast<BFloat16*>(target), tile, words, n);
  }
}

template <class T>
T* advance(T* data, Dtype dtype, int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<Byte*>(data) + elements * size_of(dtype);
}

bool all_frozen(const uint32_t* words, int64_t n) {
  if (!words) return false;
  uint32_t any = 0;
  for (int64_t w = 0; w < word_count(n); ++w) any |= words[w];
  return any == 0;
}

// Calls body(offset, n, words) for each tile that has a weight to move.
template <class Body>
void for_each_moving_tile(const uint32_t* words, int64_t n, Body body) {
  for (int64_t at = 0; at < n; at += kTile) {
    int64_t count = n - at < kTile ? n - at : kTile;
    const uint32_t* tile_words = words ? words + at / kWordBits : nullptr;
    if (!all_frozen(tile_words, count)) body(at, count, tile_words);
  }
}

}  // namespace
}  // namespace salun::cpu
