// One pass: read grad, param, both moments and bits, write all but grad; 28 bytes a weight in fp32.
#pragma once
#include "cpu/loops/step.h"

namespace salun::cpu {
namespace {

template <Decay Kind, bool Amsgrad>
void adam_tile(const AdamCoefficients c, const float* g, float* p, float* m, float* v, float* v_max,
               const uint32_t* words, int64_t n) {
  for_each_moving_word(words, n, [=](int64_t i, uint32_t keep) {
    float old_theta = p[i], old_m = m[i], old_v = v[i], old_max = Amsgrad ? v_max[i] : 0.0f;
    float theta = old_theta, first = old_m, second = old_v, largest = old_max;
    adam_update<Kind, Amsgrad>(c, g[i], theta, first, second, largest);
    p[i] = keep ? theta : old_theta;
    m[i] = keep ? first : old_m;
    v[i] = keep ? second : old_v;
    if constexpr (Amsgrad) v_max[i] = keep ? largest : old_max;
  });
}

using AdamTile = void (*)(AdamCoefficients, const float*, float*, float*, float*, float*,
                          const uint32_t*, int64_t);

template <bool Amsgrad>
AdamTile pick_adam_tile(Decay decay) {
  switch (decay) {
    case Decay::none: return adam_tile<Decay::none, Amsgrad>;
    case Decay::coupled: return adam_tile<Decay::coupled, Amsgrad>;
    default: return adam_tile<Decay::decoupled, Amsgrad>;
  }
}

void masked_adam(const Weights* weights, const void* grad, Dtype grad_dtype, float* m, float* v,
                 float* v_max, const uint32_t* words, int64_t n, const AdamStep* step) {
  AdamTile update = v_max ? pick_adam_tile<true>(step->decay) : pick_adam_tile<false>(step->decay);
  step_tiles(*weights, grad, grad_dtype, words, n, *step,
             [=](const float* g, float* p, int64_t at, const uint32_t* moving, int64_t count) {
               update(step->coefficients, g, p, m + at, v + at, v_max ? v_max + at : nullptr,
                      moving, count);
             });
}

}  // namespace
}  // namespace salun::cpu
