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
      for (int i = 0; i < int(n - base); ++i) element(base + i, bit(word, i));
    }
  }
}

// A parameter tile as fp32 values to update in place: the memory itself for fp32.
float* open_param(void* param, Dtype dtype, int64_t n, float* tile) {
  return const_cast<float*>(load(param, dtype, n, tile));
}

// Writes an updated half tile back at the stored type, where the bit is 1.
void close_param(void* param, Dtype dtype, const float* tile, const uint32_t* words, int64_t n) {
  if (dtype == Dtype::f32) return;
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    auto* raw = static_cast<typename Format::Raw*>(param);
    for_each_moving_word(words, n, [=](int64_t i, uint32_t keep) {
      typename Format::Raw moved = Format::encode(tile[i]), old = raw[i];
      raw[i] = keep ? moved : old;
    });
  });
}

template <class T>
T* advance(T* data, Dtype dtype, int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<Byte*>(data) + elements * size_of(dtype);
}

}  // namespace
}  // namespace salun::cpu
