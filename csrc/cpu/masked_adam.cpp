#include <vector>

#include "cpu/loops/loops.h"
#include "cpu/masks.h"
#include "cpu/parallel.h"
#include "cpu/weights.h"
#include "ops.h"

namespace salun::cpu {
void masked_adam(std::span<const Dense> params, std::span<const Dense> grads,
                 std::span<const Dense> exp_avgs, std::span<const Dense> exp_avg_sqs,
                 std::span<const Dense> max_exp_avg_sqs, std::span<float* const> steps,
                 std::span<const Words> masks, const HalfPrecision& half,
                 const AdamOptions& options, double lr, float grad_scale) {
  const Loops& run = loops();
  std::vector<AdamStep> updates;  // bias correction differs where a first gradient came late
  for (float* taken : steps)
    updates.push_back({.coefficients = adam_coefficients(options, lr, *taken += 1.0f),
                       .decay = decay_of(options),
                       .maximize = options.maximize,
                       .grad_scale = grad_scale});
  auto moment = [](const Dense& tensor, int64_t begin) {
    return static_cast<float*>(tensor.at(begin));
  };
  ChunkPlan(params).for_each([&](const Chunk& c) {
    const Dense& grad = grads[c.tensor];
    Weights weights = weights_at(params, half, c, *steps[c.tensor]);
    float* v_max = max_exp_avg_sqs.empty() ? nullptr : moment(max_exp_avg_sqs[c.tensor], c.begin);
    run.masked_adam(&weights, grad.at(c.begin), grad.dtype, moment(exp_avgs[c.tensor], c.begin),
                    moment(exp_avg_sqs[c.tensor], c.begin), v_max,
                    words_at(masks[c.tensor], c.begin), c.count, &updates[c.tensor]);
  });
}

}  // namespace salun::cpu
