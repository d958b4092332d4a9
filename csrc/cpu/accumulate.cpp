#include "cpu/loops/loops.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace salun::cpu {

void accumulate(std::span<const Dense> scores, std::span<const Dense> grads, ScoreRule rule,
                bool zero_grads) {
  const Loops& run = loops();
  ChunkPlan(scores).for_each([&](const Chunk& c) {
    const Dense& grad = grads[c.tensor];
    auto* score = static_cast<float*>(scores[c.tensor].at(c.begin));
    run.accumulate(score, grad.at(c.begin), grad.dtype, rule, zero_grads, c.count);
  });
}

}  // namespace salun::cpu
