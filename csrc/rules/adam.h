// Adam, Kingma & Ba 2015, Algorithm 1; amsgrad, Reddi et al. 2018; decoupled decay as AdamW,
// Loshchilov & Hutter 2019. In torch's order of operations:
//   decay: θ *= 1 - lr wd (decoupled)  or  g += wd θ;
//   m += (1 - β1)(g - m);  v = β2 v + (1 - β2) g²;  v̂ = amsgrad ? max(v̂, v) : v;
//   θ += -(lr / (1 - β1^t)) m / (√v̂ / √(1 - β2^t) + ε).
#pragma once
#include <cmath>

#include "rules/number.h"
#include "rules/power.h"

enum class Decay { none, coupled, decoupled };

struct AdamOptions {
  double beta1, beta2, eps, weight_decay;
  bool decoupled, maximize;
};

struct AdamCoefficients {
  float minus_step_size, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, shrink;
  float correction2_sqrt;
};

SALUN_RULE Decay decay_of(const AdamOptions& options) {
  if (options.weight_decay == 0.0) return Decay::none;
  return options.decoupled ? Decay::decoupled : Decay::coupled;
}

// Of the t-th step. In double up to the last rounding, as Python computes for torch's for-loop.
SALUN_RULE AdamCoefficients adam_coefficients(const AdamOptions& options, double lr, float t) {
  double correction1 = 1.0 - whole_power(options.beta1, int64_t(t));
  double correction2 = 1.0 - whole_power(options.beta2, int64_t(t));
  return {float(-(lr / correction1)),
          float(1.0 - options.beta1),
          float(options.beta2),
          float(1.0 - options.beta2),
          float(options.eps),
          float(options.weight_decay),
          float(1.0 - lr * options.weight_decay),
          float(sqrt(correction2))};
}

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
