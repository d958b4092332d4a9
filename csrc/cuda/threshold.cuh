// The exact k-th key without sorting: three histograms of digits, each among the keys that begin
// with the digits found before (rules/ordered_key.h). What is found stays on the device.
#pragma once
#include "cuda/ranked.cuh"
#include "rules/ordered_key.h"

namespace salun::cuda {

// How far a selection has come.
struct Selection {
  uint32_t key;        // the digits found so far; in the end the threshold
  uint32_t nonfinite;  // not 0: a NaN or infinity was seen
  uint64_t wanted;     // rank of the k-th among the keys that begin with `key`; in the end ties
  uint64_t equal;      // keys equal to the threshold, as far as known
  uint64_t next_chunk;
};

// Neighbouring lanes often meet the same digit: each of four lanes counts in a copy of its own.
constexpr int kCopies = 4;

__device__ __forceinline__ uint32_t key_of(float value, bool largest) {
  return largest ? ordered_key<true>(value) : ordered_key<false>(value);
}

// counts[digit] += keys that begin with selection->key. Reads 4 bytes a score, once.
template <class Slot>
__global__ void __launch_bounds__(kBlock)
    count_digits(Table<Slot> table, int level, bool largest, Selection* selection,
                 unsigned long long* counts) {
  __shared__ uint32_t bins[kHistogramBins * kCopies];
  for (int i = int(threadIdx.x); i < kHistogramBins * kCopies; i += kBlock) bins[i] = 0;
  __syncthreads();
  const uint32_t prefix = selection->key, copy = threadIdx.x % kCopies;
  bool nonfinite = false;
  for_each_chunk(table, [&](const Chunk& chunk) {
    const Slot& slot = table.slots[chunk.slot];
    for_each_group(chunk, [&](int64_t at, int count) {
      float values[kGroup];
      ranked_values(slot, at, count, values);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        uint32_t key = key_of(values[i], largest);
        if (i < count && begins_with(key, prefix, level))
          atomicAdd(&bins[digit_of(key, level) * kCopies + copy], 1u);
        nonfinite |= !is_finite(values[i]);
      }
    });
  });
  if (__syncthreads_or(nonfinite) && threadIdx.x == 0) atomicOr(&selection->nonfinite, 1u);
  for (int digit = int(threadIdx.x); digit < kHistogramBins; digit += kBlock) {
    uint32_t sum = 0;
    for (int i = 0; i < kCopies; ++i) sum += bins[digit * kCopies + i];
    if (sum != 0) atomicAdd(&counts[digit], static_cast<unsigned long long>(sum));
  }
}

// Runs before any other kernel of a selection.
void begin_selection(Workspace& workspace, Selection* selection, uint32_t key, int64_t wanted);

// Finds the digit that holds the wanted key. After the last level writes the k-th magnitude.
void descend(Workspace& workspace, Selection* selection, const unsigned long long* counts,
             int level, bool largest, float* magnitude);

// Queues *to = value.
void store(Workspace& workspace, float* to, float value);

// Throws where the selection met NaN or infinity: the one read-back.
void refuse_nonfinite(Workspace& workspace, const Selection* selection);

inline unsigned long long* new_counts(Workspace& workspace, int levels) {
  int64_t bins = int64_t(levels) * kHistogramBins;
  auto* counts = scratch<unsigned long long>(workspace, bins);
  check(cudaMemsetAsync(counts, 0, size_t(bins) * sizeof *counts, stream_of(workspace)), "memset");
  return counts;
}

template <class Slot>
void launch_count(Workspace& workspace, const Table<Slot>& table, int level, bool largest,
                  Selection* selection, unsigned long long* counts) {
  if (table.chunks == 0) return;
  LAUNCH((count_digits<Slot>), grid_for(table.chunks), kBlock, stream_of(workspace), table, level,
         largest, selection, counts);
}

// k >= 1. Leaves the threshold and its ties in `selection`, the k-th magnitude in `magnitude`.
template <class Slot>
void find_threshold(Workspace& workspace, const Table<Slot>& table, int64_t k, bool largest,
                    Selection* selection, float* magnitude) {
  unsigned long long* counts = new_counts(workspace, 3);
  begin_selection(workspace, selection, 0, k);
  for (int level = 0; level < 3; ++level, counts += kHistogramBins) {
    launch_count(workspace, table, level, largest, selection, counts);
    descend(workspace, selection, counts, level, largest, magnitude);
  }
}

}  // namespace salun::cuda
