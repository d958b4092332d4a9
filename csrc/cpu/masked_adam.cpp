#include <vector>

#include "cpu/loops/loops.h"
#include "cpu/masks.h"
#include "cpu/parallel.h"
#include "cpu/ranks.h"
#include "cpu/weights.h"
#include "ops.h"

namespace salun::cpu {

void masked_adam(std::span<const Dense> params, std::span<const Dense> grads,
                 std::span<const Dense> exp_avgs, std::span<const Dense> exp_avg_sqs,
                 std::span<const Dense> max_exp_avg_sqs, std::span<float* const> steps,
                 std::span<const Words> masks, Ranks ranks, const HalfPrecision& half,
                 const AdamOptions& options, double lr, float grad_scale) {
  require_ranks(params, masks, ranks, {exp_avgs, exp_avg_sqs, max_exp_avg_sqs});
  const Loops& run = loops();
  std::vector<AdamStep> updates;  // bias correction differs where a first gradient came late
  for (size_t t = 0; t < steps.size(); ++t)
    updates.push_back({.coefficients = adam_coefficients(options, lr, *steps[t] += 1.0f),
                       .decay = decay_of(options),
                       .maximize = options.maximize,
                       .compact = ranks_of(ranks, int64_t(t)) != nullptr,
                       .grad_scale = grad_scale});
  ChunkPlan(params).for_each([&](const Chunk& c) {
    const Dense& grad = grads[c.tensor];
    Weights weights = weights_at(params, half, c, *steps[c.tensor]);
    auto moment = [&](std::span<const Dense> states) {
      return state_at(states[c.tensor], ranks_of(ranks, c.tensor), c);
    };
    float* v_max = max_exp_avg_sqs.empty() ? nullptr : moment(max_exp_avg_sqs);
    run.masked_adam(&weights, grad.at(c.begin), grad.dtype, moment(exp_avgs), moment(exp_avg_sqs),
                    v_max, words_at(masks[c.tensor], c.begin), c.count, &updates[c.tensor]);
  });
}

}  // namespace salun::cpu
