#include <limits>

#include "cpu/threshold.h"
#include "ops.h"
#include "rules/ordered_key.h"

namespace salun::cpu {

float soft_threshold(std::span<const Dense> params, std::span<const Dense> anchors, int64_t k) {
  if (k == 0) return -std::numeric_limits<float>::infinity();
  DeltaSource source(params, anchors);
  float tau = key_magnitude(find_threshold(source, k, false, false, {}).threshold.key, false);
  source.plan().for_each([&](const Chunk& c) {
    const Dense &param = params[c.tensor], &anchor = anchors[c.tensor];
    loops().soft_threshold(param.at(c.begin), anchor.at(c.begin), param.dtype, c.count, tau);
  });
  return tau;
}

}  // namespace salun::cpu
