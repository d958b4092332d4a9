// One pass: read grad, param, buffer and bits, write param and buffer; 20 bytes a weight in fp32.
#pragma once
#include "cpu/loops/step.h"

namespace salun::cpu {
namespace {

template <Momentum Mode, bool Nesterov, bool Decay>
void sgd_tile(const SgdCoefficients c, const float* g, float* p, float* b, const uint32_t* words,
              int64_t n) {
  for_each_moving_word(words, n, [=](int64_t i, uint32_t keep) {
    float old_theta = p[i], old_buffer = Mode == Momentum::none ? 0.0f : b[i];
    float theta = old_theta, buffer = old_buffer;
    sgd_update<Mode, Nesterov, Decay>(c, g[i], theta, buffer);
    p[i] = keep ? theta : old_theta;
    if constexpr (Mode != Momentum::none) b[i] = keep ? buffer : old_buffer;
  });
}

using SgdTile = void (*)(SgdCoefficients, const float*, float*, float*, const uint32_t*, int64_t);

template <Momentum Mode>
SgdTile pick_sgd_tile(bool nesterov, bool decay) {
  if (nesterov) return decay ? sgd_tile<Mode, true, true> : sgd_tile<Mode, true, false>;
  return decay ? sgd_tile<Mode, false, true> : sgd_tile<Mode, false, false>;
}

void masked_sgd(const Weights* weights, const void* grad, Dtype grad_dtype, float* buffer,
                const uint32_t* words, int64_t n, const SgdStep* step) {
  SgdTile update = step->mode == Momentum::none ? pick_sgd_tile<Momentum::none>(false, step->decay)
                   : step->mode == Momentum::first
                       ? pick_sgd_tile<Momentum::first>(step->nesterov, step->decay)
                       : pick_sgd_tile<Momentum::running>(step->nesterov, step->decay);
  step_tiles(*weights, grad, grad_dtype, words, n, *step,
             [=](const float* g, float* p, int64_t at, const uint32_t* moving, int64_t count) {
               update(step->coefficients, g, p, buffer ? buffer + at : nullptr, moving, count);
             });
}

}  // namespace
}  // namespace salun::cpu
