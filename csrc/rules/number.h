// Numbers as the kernels see them: bit casts, half formats, and a fused multiply-add.
#pragma once
#include "rules/platform.h"

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

SALUN_RULE uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SALUN_RULE float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SALUN_RULE float to_float(float value) { return value; }

SALUN_RULE float to_float(BFloat16 value) { return bits_float(uint32_t(value.bits) << 16); }

// The exponent is rebased by integer arithmetic; subnormals are normalised by one exact float
// subtraction, so no lane ever computes with a subnormal fp32 (flush-to-zero modes do not matter).
SALUN_RULE float to_float(Half value) {
  uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  uint32_t exponent = magnitude & 0x0f800000u;
  uint32_t normal = magnitude + (112u << 23);
  uint32_t special = magnitude + (224u << 23);
  uint32_t subnormal = float_bits(bits_float(magnitude + (113u << 23)) - bits_float(113u << 23));
  uint32_t result = exponent == 0 ? subnormal : exponent == 0x0f800000u ? special : normal;
  return bits_float(sign | result);
}

SALUN_RULE void from_float(float value, float& out) { out = value; }

// Round to nearest even; NaN becomes the canonical quiet NaN, as in torch.
SALUN_RULE void from_float(float value, BFloat16& out) {
  uint32_t bits = float_bits(value);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = uint16_t(nan ? 0x7fc0u : rounded);
}

// Round to nearest even, all in integers and one exact float addition for the subnormal range.
SALUN_RULE void from_float(float value, Half& out) {
  uint32_t bits = float_bits(value);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 puts the last bit of a half subnormal (2^-24) at the last bit of the sum.
  uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // rounds to 65536 or above: infinity
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  out.bits = uint16_t(sign | result);
}

// a * b + c rounded once: where torch's own CPU and CUDA kernels fuse, the rules fuse too, and
// nowhere else (contraction is off). Without the instruction: the exact double product is added
// with rounding to odd (Boldo & Melquiond 2008), then rounded to fp32, which gives the same bits.
SALUN_RULE float fused(float a, float b, float c) {
#if defined(__CUDACC__) || defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  double product = double(a) * double(b), addend = c, sum = product + addend;
  double shadow = sum - product;
  double error = (product - (sum - shadow)) + (addend - shadow);
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  bool outward = (error > 0) == (sum > 0);
  bool inexact = error > 0 || error < 0;
  bits += inexact && !(bits & 1) ? (outward ? 1 : -1) : 0;
  memcpy(&sum, &bits, sizeof sum);
  return float(sum);
#endif
}
