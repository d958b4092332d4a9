#include <limits>

#include "cpu/digits.h"
#include "cpu/pack.h"
#include "cpu/threshold.h"
#include "ops.h"
#include "rules/bits.h"
#include "rules/ordered_key.h"

namespace salun::cpu {
namespace {

void select_nothing(std::span<const Strided> scores, std::span<const Words> masks) {
  for (size_t t = 0; t < scores.size(); ++t)
    std::fill_n(masks[t].data, word_count(scores[t].numel), 0);
}

}  // namespace

float select(std::span<const Strided> scores, int64_t k, bool largest, bool allow_nonfinite,
             std::span<const Words> masks) {
  ScoreSource source(scores);
  if (k == 0) {
    if (!allow_nonfinite) refuse_nonfinite(source);
    select_nothing(scores, masks);
    float infinity = std::numeric_limits<float>::infinity();
    return largest ? infinity : -infinity;
  }
  Found found = find_threshold(source, k, largest, allow_nonfinite, masks);
  if (found.by)
    complete_masks(source, *found.by, found.threshold, largest, masks);
  else
    pack_masks(source, found.threshold, largest, masks);
  return key_magnitude(found.threshold.key, largest);
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
