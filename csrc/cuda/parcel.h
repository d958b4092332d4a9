// Host memory reaches the device as kernel arguments: no copy that a CUDA graph would read again
// from memory long gone, no pinned buffers, and ordered by the stream.
#pragma once
#include <algorithm>
#include <cstdint>

namespace salun::cuda {

struct alignas(16) Quad {
  uint32_t part[4];
};

// What one launch carries: as much as fits beside a pointer and a count.
template <int64_t ArgumentBytes>
struct Parcel {
  static constexpr int64_t kQuads = (ArgumentBytes - 16) / int64_t(sizeof(Quad));
  Quad quads[kQuads];
};

// Calls send(first quad, count) until all have gone.
template <class Send>
void in_parcels(int64_t quads, int64_t per_parcel, Send send) {
  for (int64_t first = 0; first < quads; first += per_parcel)
    send(first, std::min(per_parcel, quads - first));
}

}  // namespace salun::cuda
