// Adam, Kingma & Ba 2015, Algorithm 1; amsgrad, Reddi et al. 2018; decoupled decay as AdamW,
// Loshchilov & Hutter 2019. In torch's order of operations:
//   decay: θ *= 1 - lr wd (decoupled)  or  g += wd θ;
//   m += (1 - β1)(g - m);  v = β2 v + (1 - β2) g²;  v̂ = amsgrad ? max(v̂, v) : v;
//   θ += -(lr / (1 - β1^t)) m / (√v̂ / √(1 - β2^t) + ε).
#pragma once
#include <cmath>

#include "rules/number.h"

enum class Decay { none, coupled, decoupled };

struct AdamCoefficients {
  float minus_step_size, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, shrink;
  float correction2_sqrt;
};

// torch.lerp: from the nearer end.
SALUN_RULE float interpolate(float start, float end, float weight) {
  return weight < 0.5f ? fused(weight, end - start, start) : fused(weight - 1.0f, end - start, end);
}

// torch.maximum: NaN wins.
SALUN_RULE float larger(float a, float b) { return a > b || a != a ? a : b; }

template <Decay Kind, bool Amsgrad>
SALUN_RULE void adam_update(const AdamCoefficients& c, float g, float& theta, float& m, float& v,
                            float& v_max) {
  if constexpr (Kind == Decay::coupled) g = fused(theta, c.weight_decay, g);
  if constexpr (Kind == Decay::decoupled) theta = theta * c.shrink;
  m = interpolate(m, g, c.one_minus_beta1);
  v = fused(c.one_minus_beta2 * g, g, v * c.beta2);
  if constexpr (Amsgrad) v_max = larger(v_max, v);
  float denominator = sqrtf(Amsgrad ? v_max : v) / c.correction2_sqrt + c.eps;
  theta = theta + (c.minus_step_size * m) / denominator;
}
