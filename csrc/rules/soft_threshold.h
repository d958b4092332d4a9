// SalUn-soft: Δ = θ - θ_ref shrinks by τ and is exactly 0 where |Δ| <= τ.
#pragma once
#include "rules/number.h"

SALUN_RULE float soft_delta(float theta, float anchor) { return theta - anchor; }

SALUN_RULE float magnitude(float value) { return bits_float(float_bits(value) & 0x7fffffffu); }

SALUN_RULE float soft_shrunk(float delta, float anchor, float tau) {
  float shrunk = magnitude(delta) - tau;
  uint32_t sign = float_bits(delta) & 0x80000000u;
  return anchor + bits_float(float_bits(shrunk) | sign);
}
