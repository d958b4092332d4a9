// Sums over the lanes of a warp, all of which must take part.
#pragma once
#include "cuda/launch.cuh"

namespace salun::cuda {

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Of this lane and those below it.
template <class T>
__device__ __forceinline__ T warp_sum_upto(T value) {
  const int lane = int(threadIdx.x) % kWarp;
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T lower = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += lower;
  }
  return value;
}

}  // namespace salun::cuda
