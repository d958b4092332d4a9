#include "cpu/digits.h"

#include <mutex>

#include "rules/ordered_key.h"

namespace salun::cpu {

void count_digits(const Source& source, uint32_t prefix, int level, bool largest,
                  std::span<int64_t> counts) {
  std::fill(counts.begin(), counts.end(), 0);
  std::mutex merging;
  const ChunkPlan& plan = source.plan();
  // Coarse parts, so that the merge of 2,048 bins is rare beside the counting.
  constexpr int64_t kPart = 16;
  struct Context {
    const Source& source;
    uint32_t prefix;
    int level;
    bool largest;
    std::span<int64_t> counts;
    std::mutex& merging;
  } context{source, prefix, level, largest, counts, merging};
  parallel_for(
      plan.size(), kPart,
      [](void* opaque, int64_t begin, int64_t end) {
        auto& c = *static_cast<Context*>(opaque);
        float tile[kChunk];
        std::vector<int64_t> mine(kHistogramBins);
        for (int64_t i = begin; i < end; ++i) {
          Chunk chunk = c.source.plan().at(i);
          View view = c.source.view(chunk, tile);
          loops().histogram(view, chunk.count, c.prefix, c.level, c.largest, mine.data());
        }
        std::lock_guard lock(c.merging);
        for (int bin = 0; bin < kHistogramBins; ++bin) c.counts[bin] += mine[bin];
      },
      &context);
}

Threshold kth_by_digits(const Source& source, int64_t k, bool largest) {
  std::vector<int64_t> counts(kHistogramBins);
  uint32_t prefix = 0;
  for (int level = 0; level < 3; ++level) {
    count_digits(source, prefix, level, largest, counts);
    uint32_t digit = digit_mask(level);
    while (counts[digit] < k) k -= counts[digit--];
    prefix = append_digit(prefix, digit, level);
  }
  return {prefix, k};
}

}  // namespace salun::cpu
