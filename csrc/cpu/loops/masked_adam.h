// One pass: read grad, param, both moments and bits, write all but grad; 28 bytes a weight in fp32.
#pragma once
#include "cpu/loops/tile.h"

namespace salun::cpu {
namespace {

struct AdamTileOut {
  float p[kTile], m[kTile], v[kTile], v_max[kTile];
};

template <Decay Kind, bool Amsgrad>
void adam_tile(const AdamCoefficients c, const float* __restrict g, const float* __restrict p,
               const float* __restrict m, const float* __restrict v, const float* __restrict v_max,
               AdamTileOut* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float theta = p[i], first = m[i], second = v[i], largest = Amsgrad ? v_max[i] : 0.0f;
    adam_update<Kind, Amsgrad>(c, g[i], theta, first, second, largest);
    out->p[i] = theta;
    out->m[i] = first;
    out->v[i] = second;
    if constexpr (Amsgrad) out->v_max[i] = largest;
  }
}

using AdamTile = void (*)(AdamCoefficients, const float*, const float*, const float*, const float*,
                          const float*, AdamTileOut*, int64_t);

template <bool Amsgrad>
AdamTile pick_adam_tile(Decay decay) {
  switch (decay) {
    case Decay::none: return adam_tile<Decay::none, Amsgrad>;
    case Decay::coupled: return adam_tile<Decay::coupled, Amsgrad>;
    default: return adam_tile<Decay::decoupled, Amsgrad>;
  }
}

void masked_adam(void* param, Dtype param_dtype, const void* grad, Dtype grad_dtype, float* m,
                 float* v, float* v_max, const uint32_t* words, int64_t n, const AdamStep* step) {
  AdamTile update = v_max ? pick_adam_tile<true>(step->decay) : pick_adam_tile<false>(step->decay);
  float g_tile[kTile], p_tile[kTile];
  AdamTileOut out;
  for_each_moving_tile(words, n, [&](int64_t at, int64_t count, const uint32_t* tile_words) {
    void* p_data = advance(param, param_dtype, at);
    const float* p = load(p_data, param_dtype, count, p_tile);
    const float* g = load_gradient(advance(grad, grad_dtype, at), grad_dtype, count,
                                   step->maximize, step->grad_scale, g_tile);
    update(step->coefficients, g, p, m + at, v + at, v_max ? v_max + at : nullptr, &out, count);
    commit(p_data, param_dtype, out.p, tile_words, count);
    commit(m + at, Dtype::f32, out.m, tile_words, count);
    commit(v + at, Dtype::f32, out.v, tile_words, count);
    if (v_max) commit(v_max + at, Dtype::f32, out.v_max, tile_words, count);
  });
}

}  // namespace
}  // namespace salun::cpu
