// Numbers as the kernels see them: bit casts, half formats, and a fused multiply-add.
#pragma once
#include "rules/platform.h"

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

SALUN_RULE bool is_finite(float value) { return (float_bits(value) & 0x7fffffffu) < 0x7f800000u; }

// A format is how a number lies in memory (Raw), and its way to fp32 and back. Encoding rounds to
// nearest even; NaN becomes the canonical quiet NaN, as in torch.
struct Float32 {
  using Raw = float;
  SALUN_RULE float decode(Raw raw) { return raw; }
  SALUN_RULE Raw encode(float value) { return value; }
};

struct BFloat16 {
  using Raw = uint16_t;
  SALUN_RULE float decode(Raw raw) { return bits_float(uint32_t(raw) << 16); }

  SALUN_RULE Raw encode(float value) {
    uint32_t bits = float_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return Raw(nan ? 0x7fc0u : rounded);
  }
};

// Integer arithmetic, and one exact float operation for the subnormal range in which no operand is
// a subnormal fp32: flush-to-zero modes do not matter.
struct Float16 {
  using Raw = uint16_t;

  SALUN_RULE float decode(Raw raw) {
    uint32_t sign = uint32_t(raw & 0x8000u) << 16;
    uint32_t magnitude = uint32_t(raw & 0x7fffu) << 13;
    uint32_t exponent = magnitude & 0x0f800000u;
    uint32_t normal = magnitude + (112u << 23);
    uint32_t special = magnitude + (224u << 23);
    uint32_t subnormal = float_bits(bits_float(magnitude + (113u << 23)) - bits_float(113u << 23));
    uint32_t result = exponent == 0 ? subnormal : exponent == 0x0f800000u ? special : normal;
    return bits_float(sign | result);
  }

  SALUN_RULE Raw encode(float value) {
    uint32_t bits = float_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 puts the last bit of a half subnormal (2^-24) at the last bit of the sum.
    uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
    uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;  // rounds to 65536 or above: infinity
    result = magnitude > 0x7f800000u ? 0x7e00u : result;
    return Raw(sign | result);
  }
};

// a * b + c rounded once: where torch's own CPU and CUDA kernels fuse, the rules fuse too, and
// nowhere else (contraction is off). Without the instruction: the exact double product is added
// with rounding to odd (Boldo & Melquiond 2008), then rounded to fp32, which gives the same bits.
SALUN_RULE float fused(float a, float b, float c) {
#if defined(__CUDACC__)
  return fmaf(a, b, c);
#elif defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  double product = double(a) * double(b), addend = c, sum = product + addend;
  double shadow = sum - product;
  double error = (product - (sum - shadow)) + (addend - shadow);
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  uint64_t inexact = uint64_t(error > 0) | uint64_t(error < 0), even = ~bits & 1;
  uint64_t outward = uint64_t((error > 0) == (sum > 0));
  bits += (inexact & even) * (2 * outward - 1);
  memcpy(&sum, &bits, sizeof sum);
  return float(sum);
#endif
}
