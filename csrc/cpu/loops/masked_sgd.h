// One pass: read grad, param, buffer and bits, write param and buffer; 20 bytes a weight in fp32.
#pragma once
#include "cpu/loops/tile.h"

namespace salun::cpu {
namespace {

template <Momentum Mode, bool Nesterov, bool Decay>
void sgd_tile(const SgdCoefficients c, const float* __restrict g, const float* __restrict p,
              const float* __restrict b, float* __restrict new_p, float* __restrict new_b,
              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    float theta = p[i], buffer = Mode == Momentum::running ? b[i] : 0.0f;
    sgd_update<Mode, Nesterov, Decay>(c, g[i], theta, buffer);
    new_p[i] = theta;
    if constexpr (Mode != Momentum::none) new_b[i] = buffer;
  }
}

using SgdTile = void (*)(SgdCoefficients, const float*, const float*, const float*, float*, float*,
                         int64_t);

template <Momentum Mode>
SgdTile pick_sgd_tile(bool nesterov, bool decay) {
  if (nesterov) return decay ? sgd_tile<Mode, true, true> : sgd_tile<Mode, true, false>;
  return decay ? sgd_tile<Mode, false, true> : sgd_tile<Mode, false, false>;
}

void masked_sgd(void* param, Dtype param_dtype, const void* grad, Dtype grad_dtype, float* buffer,
                const uint32_t* words, int64_t n, const SgdStep* step) {
  SgdTile update = step->mode == Momentum::none ? pick_sgd_tile<Momentum::none>(false, step->decay)
                   : step->mode == Momentum::first
                       ? pick_sgd_tile<Momentum::first>(step->nesterov, step->decay)
                       : pick_sgd_tile<Momentum::running>(step->nesterov, step->decay);
  float g_tile[kTile], p_tile[kTile], new_p[kTile], new_b[kTile];
  for_each_moving_tile(words, n, [&](int64_t at, int64_t count, const uint32_t* tile_words) {
    void* p_data = advance(param, param_dtype, at);
    const float* p = load(p_data, param_dtype, count, p_tile);
    const float* g = load_gradient(advance(grad, grad_dtype, at), grad_dtype, count,
                                   step->maximize, step->grad_scale, g_tile);
    update(step->coefficients, g, p, buffer ? buffer + at : nullptr, new_p, new_b, count);
    commit(p_data, param_dtype, new_p, tile_words, count);
    if (buffer) commit(buffer + at, Dtype::f32, new_b, tile_words, count);
  });
}

}  // namespace
}  // namespace salun::cpu
