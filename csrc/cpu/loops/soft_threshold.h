// θ = |Δ| > τ ? θ_ref + sign(Δ)(|Δ| - τ) : θ_ref to the byte; 12 bytes a weight in fp32.
#pragma once
#include "cpu/loops/tile.h"
#include "rules/soft_threshold.h"

namespace salun::cpu {
namespace {

void soft_threshold(void* param, const void* anchor, Dtype dtype, int64_t n, float tau) {
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    using Raw = typename Format::Raw;
    auto* __restrict p = static_cast<Raw*>(param);
    auto* __restrict a = static_cast<const Raw*>(anchor);
    for (int64_t i = 0; i < n; ++i) {
      Raw fixed = a[i];
      float reference = Format::decode(fixed);
      float difference = soft_delta(Format::decode(p[i]), reference);
      Raw moved = Format::encode(soft_shrunk(difference, reference, tau));
      p[i] = magnitude(difference) > tau ? moved : fixed;
    }
  });
}

}  // namespace
}  // namespace salun::cpu
