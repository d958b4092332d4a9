// Eight neighbouring numbers between memory and registers: 16 bytes at a time where the pointer
// allows (gradients may lie anywhere), one by one at the ragged end of a tensor.
#pragma once
#include "cuda/table.cuh"
#include "rules/bits.h"
#include "rules/number.h"

namespace salun::cuda {

template <class Raw>
struct alignas(16) Wide {
  static constexpr int kLanes = 16 / int(sizeof(Raw));
  Raw lane[kLanes];
};

__device__ __forceinline__ bool allows_wide(const void* pointer, int count) {
  return count == kGroup && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <class Raw>
__device__ __forceinline__ void load_group(const Raw* from, int count, Raw (&to)[kGroup]) {
  constexpr int kLanes = Wide<Raw>::kLanes;
  if (allows_wide(from, count)) {
#pragma unroll
    for (int w = 0; w < kGroup / kLanes; ++w) {
      Wide<Raw> wide = reinterpret_cast<const Wide<Raw>*>(from)[w];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) to[w * kLanes + i] = wide.lane[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) to[i] = i < count ? from[i] : Raw(0);
  }
}

template <class Raw>
__device__ __forceinline__ void store_group(Raw* to, int count, const Raw (&from)[kGroup]) {
  constexpr int kLanes = Wide<Raw>::kLanes;
  if (allows_wide(to, count)) {
#pragma unroll
    for (int w = 0; w < kGroup / kLanes; ++w) {
      Wide<Raw> wide;
#pragma unroll
      for (int i = 0; i < kLanes; ++i) wide.lane[i] = from[w * kLanes + i];
      reinterpret_cast<Wide<Raw>*>(to)[w] = wide;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      if (i < count) to[i] = from[i];
  }
}

// As fp32 values. Past the end: 0.
template <class Format>
__device__ __forceinline__ void load_values(const void* data, int64_t at, int count,
                                            float (&values)[kGroup]) {
  typename Format::Raw raw[kGroup];
  load_group(static_cast<const typename Format::Raw*>(data) + at, count, raw);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) values[i] = Format::decode(raw[i]);
}

// A group begins at a multiple of 8: its bits are one byte of its words (GPUs are little-endian).
__device__ __forceinline__ uint32_t group_bits(const uint32_t* words, int64_t at) {
  return reinterpret_cast<const uint8_t*>(words)[at / kGroup];
}

__device__ __forceinline__ void store_group_bits(uint32_t* words, int64_t at, uint32_t bits) {
  reinterpret_cast<uint8_t*>(words)[at / kGroup] = uint8_t(bits);
}

__device__ __forceinline__ uint32_t first_bits(int count) { return (1u << count) - 1; }

}  // namespace salun::cuda
