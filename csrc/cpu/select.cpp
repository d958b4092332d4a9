#include <limits>
#include <vector>

#include "cpu/loops/loops.h"
#include "cpu/masks.h"
#include "cpu/threshold.h"
#include "ops.h"
#include "rules/ordered_key.h"

namespace salun::cpu {
namespace {

// All ties are packed first and counted per chunk: nearly always that was right. Where only some
// are wanted, the later chunks give back their surplus, last element first: lowest index wins.
void pack_masks(const ScoreSource& source, Threshold threshold, bool largest,
                std::span<const Words> masks) {
  const ChunkPlan& plan = source.plan();
  std::vector<int64_t> ties(plan.size());
  plan.for_each([&](const Chunk& c) {
    float tile[kChunk];
    const float* values = source.read(c.tensor, c.begin, c.count, tile);
    ties[c.index] =
        loops().pack(values, c.count, threshold.key, largest, words_at(masks[c.tensor], c.begin));
  });
  int64_t wanted = threshold.ties;
  for (int64_t& here : ties) {  // from counts to how many ties each chunk must give back
    int64_t taken = std::min(here, wanted);
    wanted -= taken;
    here -= taken;
  }
  plan.for_each([&](const Chunk& c) {
    int64_t surplus = ties[c.index];
    if (surplus == 0) return;
    float tile[kChunk];
    const float* values = source.read(c.tensor, c.begin, c.count, tile);
    uint32_t* words = words_at(masks[c.tensor], c.begin);
    for (int64_t i = c.count - 1; surplus > 0; --i) {
      uint32_t key = largest ? ordered_key<true>(values[i]) : ordered_key<false>(values[i]);
      if (key != threshold.key) continue;
      words[i / kWordBits] &= ~(uint32_t(1) << (i % kWordBits));
      --surplus;
    }
  });
}

}  // namespace

float select(std::span<const Strided> scores, int64_t k, bool largest, bool allow_nonfinite,
             std::span<const Words> masks) {
  ScoreSource source(scores);
  if (k == 0) {
    if (!allow_nonfinite) refuse_nonfinite(source);
    pack_masks(source, {kKeyMax, 0}, largest, masks);
    float infinity = std::numeric_limits<float>::infinity();
    return largest ? infinity : -infinity;
  }
  Threshold threshold = find_threshold(source, k, largest, allow_nonfinite);
  pack_masks(source, threshold, largest, masks);
  return key_magnitude(threshold.key, largest);
}

void select_histogram(std::span<const Strided> scores, uint32_t prefix, int level, bool largest,
                      std::span<int64_t> counts) {
  count_digits(ScoreSource(scores), prefix, level, largest, counts);
}

void select_pack(std::span<const Strided> scores, uint32_t threshold, int64_t ties, bool largest,
                 std::span<const Words> masks) {
  pack_masks(ScoreSource(scores), {threshold, ties}, largest, masks);
}

}  // namespace salun::cpu
