// Which of many equal keys come first. Chunks are numbered in the order that breaks ties, each
// counts its own, and learns from the chunks before it how many came earlier: one pass, by
// decoupled look-back (Merrill & Garland 2016). A chunk's status is one word, so that count and
// kind arrive together and no other memory need be ordered.
#pragma once
#include "cuda/table.cuh"
#include "cuda/warp.cuh"

namespace salun::cuda {

using TieStatus = unsigned long long;  // ties << 2 | kind; 0: not counted yet
constexpr TieStatus kOwnTies = 1;      // of this chunk
constexpr TieStatus kAllTies = 2;      // of this chunk and all before it

__device__ __forceinline__ void publish(TieStatus* status, uint64_t ties, TieStatus kind) {
  atomicExch(status, TieStatus(ties) << 2 | kind);
}

__device__ __forceinline__ TieStatus await(TieStatus* status) {
  TieStatus seen = 0;
  while (seen == 0) seen = atomicAdd(status, TieStatus(0));
  return seen;
}

// Ties in all chunks before this one; called by one whole warp. The chunks before must have been
// begun by running blocks: hand them out by a counter.
__device__ __forceinline__ uint64_t ties_before(TieStatus* status, int64_t chunk, uint64_t own) {
  const int lane = int(threadIdx.x) % kWarp;
  if (lane == 0) publish(&status[chunk], own, chunk == 0 ? kAllTies : kOwnTies);
  uint64_t before = 0;
  for (int64_t nearest = chunk - 1; nearest >= 0; nearest -= kWarp) {
    const int64_t mine = nearest - lane;
    const TieStatus seen = mine >= 0 ? await(&status[mine]) : kAllTies;
    const uint32_t complete = __ballot_sync(kAllLanes, (seen & kAllTies) != 0);
    const int last = complete != 0 ? __ffs(int(complete)) - 1 : kWarp - 1;
    before += warp_sum(lane <= last ? uint64_t(seen >> 2) : uint64_t(0));
    if (complete != 0) break;
  }
  if (lane == 0 && chunk != 0) publish(&status[chunk], before + own, kAllTies);
  return before;
}

}  // namespace salun::cuda
