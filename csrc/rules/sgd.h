// SGD with momentum, as torch.optim.SGD (Sutskever et al. 2013 with torch's placement of lr):
//   g += wd θ;  b = μ b + (1 - dampening) g  (first step: b = g);  g = nesterov ? g + μ b : b;
//   θ -= lr g.
// `fused` stands where torch's for-loop step fuses; everything else is rounded operation by
// operation.
#pragma once
#include "rules/number.h"

enum class Momentum { none, first, running };

struct SgdOptions {
  double momentum, dampening, weight_decay;
  bool nesterov, maximize;
};

struct SgdCoefficients {
  float minus_lr, momentum, one_minus_dampening, weight_decay;
};

SALUN_RULE SgdCoefficients sgd_coefficients(const SgdOptions& options, double lr) {
  return {float(-lr), float(options.momentum), float(1.0 - options.dampening),
          float(options.weight_decay)};
}

template <Momentum Mode, bool Nesterov, bool Decay>
SALUN_RULE void sgd_update(const SgdCoefficients& c, float g, float& theta, float& buffer) {
  if constexpr (Decay) g = fused(theta, c.weight_decay, g);
  if constexpr (Mode == Momentum::first) buffer = g;
  if constexpr (Mode == Momentum::running)
    buffer = fused(g, c.one_minus_dampening, buffer * c.momentum);
  if constexpr (Mode != Momentum::none) g = Nesterov ? fused(buffer, c.momentum, g) : buffer;
  theta = fused(g, c.minus_lr, theta);
}
