#include "cpu/pack.h"

#include "cpu/masks.h"

namespace salun::cpu {

int64_t pack_chunk(const Source& source, const Chunk& chunk, Threshold threshold, bool largest,
                   uint32_t* words) {
  float tile[kChunk];
  return loops().pack(source.view(chunk, tile), chunk.count, threshold.key, threshold.ties, largest,
                      words);
}

std::vector<int64_t> first_come(const std::vector<int64_t>& ties, int64_t wanted) {
  std::vector<int64_t> taken;
  taken.reserve(ties.size());
  for (int64_t here : ties) {
    taken.push_back(std::min(here, wanted));
    wanted -= taken.back();
  }
  return taken;
}

// All ties are packed first and counted per chunk: nearly always that was right. Where only some
// are wanted, the chunks with a surplus are packed again.
void pack_masks(const Source& source, Threshold threshold, bool largest,
                std::span<const Words> masks) {
  const ChunkPlan& plan = source.plan();
  std::vector<int64_t> ties(plan.size());
  auto pack = [&](const Chunk& c, int64_t wanted) {
    uint32_t* words = words_at(masks[c.tensor], c.begin);
    return pack_chunk(source, c, {threshold.key, wanted}, largest, words);
  };
  plan.for_each([&](const Chunk& c) { ties[c.index] = pack(c, c.count); });
  std::vector<int64_t> taken = first_come(ties, threshold.ties);
  plan.for_each([&](const Chunk& c) {
    if (taken[c.index] < ties[c.index]) pack(c, taken[c.index]);
  });
}

}  // namespace salun::cpu
