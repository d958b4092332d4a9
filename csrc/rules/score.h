// What one gradient adds to a score. SalUn, eq. 4: signed sum, absolute value once at the end;
// |g| and g² (diagonal Fisher) are the variants one meets.
#pragma once
#include "rules/number.h"

SALUN_RULE float score_sum(float g) { return g; }
SALUN_RULE float score_abs(float g) { return bits_float(float_bits(g) & 0x7fffffffu); }
SALUN_RULE float score_square(float g) { return g * g; }
