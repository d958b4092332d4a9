// What selection ranks, tensor by tensor: scores of any strides, or differences made on the way.
#pragma once
#include "cuda/group.cuh"
#include "formats.h"
#include "rules/soft_threshold.h"

namespace salun::cuda {

constexpr int kMaxDims = 8;

struct ScoreSlot {
  const void* data;
  uint32_t* words;  // where its mask goes, if one is wanted
  int64_t numel;
  Dtype dtype;
  int dims;  // 0: the elements lie one behind the other
  int64_t sizes[kMaxDims], strides[kMaxDims];
  double inverses[kMaxDims];  // 1 / sizes
};

struct DeltaSlot {
  void* param;
  const void* anchor;
  int64_t numel;
  Dtype dtype;
};

// Where the row-major element `index` lies, in elements. A GPU divides integers by a subroutine,
// whose call spills registers: the rounded product with the inverse is off by one at most (below
// 2^52). Not unrolled: eight copies of it per group crowd the instruction cache.
__device__ __forceinline__ int64_t place_of(const ScoreSlot& slot, int64_t index) {
  int64_t place = 0;
#pragma unroll 1
  for (int d = slot.dims - 1; d >= 0; --d) {
    const int64_t size = slot.sizes[d];
    int64_t outer = int64_t(double(index) * slot.inverses[d]), inner = index - outer * size;
    if (inner < 0) --outer, inner += size;
    if (inner >= size) ++outer, inner -= size;
    place += inner * slot.strides[d];
    index = outer;
  }
  return place;
}

__device__ __forceinline__ float score_at(const ScoreSlot& slot, int64_t index) {
  const int64_t place = place_of(slot, index);
  float value = 0.0f;
  with_format(slot.dtype, [&](auto format) {
    using Format = decltype(format);
    value = Format::decode(static_cast<const typename Format::Raw*>(slot.data)[place]);
  });
  return value;
}

// Values of a group in the order that breaks ties. Past the end: 0.
__device__ __forceinline__ void ranked_values(const ScoreSlot& slot, int64_t at, int count,
                                              float (&values)[kGroup]) {
  if (slot.dims == 0) {
    with_format(slot.dtype,
                [&](auto format) { load_values<decltype(format)>(slot.data, at, count, values); });
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = i < count ? score_at(slot, at + i) : 0.0f;
  }
}

// In the order of memory: the threshold of SalUn-soft needs no other.
__device__ __forceinline__ void ranked_values(const DeltaSlot& slot, int64_t at, int count,
                                              float (&values)[kGroup]) {
  with_format(slot.dtype, [&](auto format) {
    using Format = decltype(format);
    float anchor[kGroup];
    load_values<Format>(slot.param, at, count, values);
    load_values<Format>(slot.anchor, at, count, anchor);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = soft_delta(values[i], anchor[i]);
  });
}

}  // namespace salun::cuda
