// Σ_i |∇_W ℓ_i| of a convolution. For one sample ∇_W ℓ_i is a matrix product over the places of the
// output; a tile of it is made in registers, its magnitude added to a tile of sums, and it is gone.
// Lanes are output channels, whose gradients are packed beside each other; the inputs are read where
// they lie, one number at a time, so that no window is ever unfolded.
#pragma once
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "cpu/loops/tile.h"

namespace salun::cpu {
namespace {

// A tile fills the registers: kTileRows * kTileLanes sums, the lanes of the gradients, one input.
#if defined(__AVX512F__)
using Lanes = __m512;
constexpr int kTileRows = 14, kVectors = 2;
inline Lanes spread(float value) { return _mm512_set1_ps(value); }
inline Lanes fused_lanes(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes magnitudes(Lanes a) { return _mm512_abs_ps(a); }
#elif defined(__AVX2__)
using Lanes = __m256;
constexpr int kTileRows = 6, kVectors = 2;
inline Lanes spread(float value) { return _mm256_set1_ps(value); }
inline Lanes fused_lanes(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
inline Lanes magnitudes(Lanes a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
#else
typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t LaneBits __attribute__((vector_size(16)));
constexpr int kTileRows = 6, kVectors = 2;
inline Lanes spread(float value) { return Lanes{value, value, value, value}; }
inline Lanes fused_lanes(Lanes a, Lanes b, Lanes c) { return a * b + c; }
inline Lanes magnitudes(Lanes a) { return Lanes(LaneBits(a) & 0x7fffffff); }
#endif
constexpr int kLanes = int(sizeof(Lanes) / sizeof(float)), kPanelLanes = kVectors * kLanes;

inline Lanes load_lanes(const float* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store_lanes(float* to, Lanes lanes) { __builtin_memcpy(to, &lanes, sizeof lanes); }

// Of `count` samples. offsets [kTileRows]: where each row of the tile begins in the inputs.
void add_tile(const SampleProduct* samples, int64_t count, const int64_t* offsets, float* sums) {
  for (int64_t s = 0; s < count; ++s) {
    const SampleProduct& sample = samples[s];
    Lanes products[kTileRows][kVectors] = {};
    const float* g = sample.grads;
    for (int64_t y = 0; y < sample.height; ++y) {
      const float* x = sample.inputs + y * sample.step_y;
      for (int64_t i = 0; i < sample.width; ++i, x += sample.step_x, g += kPanelLanes) {
        Lanes gradients[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) gradients[v] = load_lanes(g + v * kLanes);
#pragma GCC unroll 16
        for (int row = 0; row < kTileRows; ++row) {
          Lanes input = spread(x[offsets[row]]);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v)
            products[row][v] = fused_lanes(gradients[v], input, products[row][v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < kTileRows; ++row)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        float* sum = sums + row * kPanelLanes + v * kLanes;
        store_lanes(sum, load_lanes(sum) + magnitudes(products[row][v]));
      }
  }
}

// Gradients of `lanes` channels side by side, place by place; 0 in the lanes that are left over.
void pack_panel(const void* grads, Dtype dtype, const PanelShape* shape, int64_t lanes,
                float* packed) {
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    auto* raw = static_cast<const typename Format::Raw*>(grads);
    constexpr int64_t kPlaces = 64;  // of a block that stays in L1 while all lanes are written
    for (int64_t y = 0; y < shape->height; ++y)
      for (int64_t first = 0; first < shape->width; first += kPlaces) {
        int64_t count = shape->width - first < kPlaces ? shape->width - first : kPlaces;
        float* to = packed + (y * shape->width + first) * kPanelLanes;
        for (int64_t lane = 0; lane < kPanelLanes; ++lane) {
          auto* from = raw + lane * shape->stride_lane + y * shape->stride_y +
                       first * shape->stride_x;
          for (int64_t i = 0; i < count; ++i)
            to[i * kPanelLanes + lane] =
                lane < lanes ? Format::decode(from[i * shape->stride_x]) : 0.0f;
        }
      }
  });
}

}  // namespace
}  // namespace salun::cpu
