// The weights of a chunk, as the hot loops of the masked steps take them.
#pragma once
#include "cpu/loops/loops.h"
#include "cpu/parallel.h"

namespace salun::cpu {

// t: the number of this step.
inline Weights weights_at(std::span<const Dense> params, const HalfPrecision& half, const Chunk& c,
                          float t) {
  const Dense& param = params[c.tensor];
  float* master = half.masters.empty() ? nullptr : half.masters[c.tensor];
  int64_t origin = half.stochastic ? half.origins[c.tensor] : 0;
  return {.data = param.at(c.begin),
          .dtype = param.dtype,
          .master = master ? master + c.begin : nullptr,
          .stochastic = half.stochastic,
          .key = rounding_key(half.seed, t),
          .index = uint64_t(origin + c.begin)};
}

}  // namespace salun::cpu
