// Numbers that may lie on the device, as kernels read them.
#pragma once
#include "ops.h"

namespace salun::cuda {

__device__ __forceinline__ double value_of(const Scalar& scalar) {
  if (scalar.device == nullptr) return scalar.value;
  return scalar.fp64 ? *static_cast<const double*>(scalar.device)
                     : double(*static_cast<const float*>(scalar.device));
}

}  // namespace salun::cuda
