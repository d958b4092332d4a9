// Whole powers, the same on every backend: libraries round pow() differently.
#pragma once
#include <cmath>

#include "rules/platform.h"

// An unevaluated sum of two doubles: about 106 bits (Dekker 1971).
struct TwoDoubles {
  double high, low;
};

SALUN_RULE TwoDoubles times(TwoDoubles a, TwoDoubles b) {
  double product = a.high * b.high;
  double error = fma(a.high, b.high, -product) + (a.high * b.low + a.low * b.high);
  double high = product + error;
  return {high, error - (high - product)};
}

// base^exponent by squaring, for exponents >= 0: rounded to double once, at the end.
SALUN_RULE double whole_power(double base, int64_t exponent) {
  TwoDoubles result = {1.0, 0.0}, square = {base, 0.0};
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result = times(result, square);
    square = times(square, square);
  }
  return result.high;
}
