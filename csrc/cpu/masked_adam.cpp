#include <cmath>
#include <vector>

#include "cpu/loops/loops.h"
#include "cpu/masks.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace salun::cpu {
namespace {

// Bias corrections in double, as Python computes them for torch's for-loop step.
AdamStep step_of(const AdamOptions& options, double t) {
  double correction1 = 1.0 - std::pow(options.beta1, t);
  double correction2 = 1.0 - std::pow(options.beta2, t);
  Decay decay = options.weight_decay == 0.0 ? Decay::none
                : options.decoupled         ? Decay::decoupled
                                            : Decay::coupled;
  return {
      .coefficients = {.minus_step_size = float(-(options.lr / correction1)),
                       .one_minus_beta1 = float(1.0 - options.beta1),
                       .beta2 = float(options.beta2),
                       .one_minus_beta2 = float(1.0 - options.beta2),
                       .eps = float(options.eps),
                       .weight_decay = float(options.weight_decay),
                       .shrink = float(1.0 - options.lr * options.weight_decay),
                       .correction2_sqrt = float(std::pow(correction2, 0.5))},
      .decay = decay,
      .maximize = options.maximize,
      .grad_scale = options.grad_scale,
  };
}

}  // namespace

void masked_adam(std::span<const Dense> params, std::span<const Dense> grads,
                 std::span<const Dense> exp_avgs, std::span<const Dense> exp_avg_sqs,
                 std::span<const Dense> max_exp_avg_sqs, std::span<float* const> steps,
                 std::span<const Words> masks, const AdamOptions& options) {
  const Loops& run = loops();
  std::vector<AdamStep> updates;  // bias correction differs where a first gradient came late
  for (float* taken : steps) updates.push_back(step_of(options, double(*taken += 1.0f)));
  auto moment = [](const Dense& tensor, int64_t begin) {
    return static_cast<float*>(tensor.at(begin));
  };
  ChunkPlan(params).for_each([&](const Chunk& c) {
    const Dense &param = params[c.tensor], &grad = grads[c.tensor];
    float* v_max = max_exp_avg_sqs.empty() ? nullptr : moment(max_exp_avg_sqs[c.tensor], c.begin);
    run.masked_adam(param.at(c.begin), param.dtype, grad.at(c.begin), grad.dtype,
                    moment(exp_avgs[c.tensor], c.begin), moment(exp_avg_sqs[c.tensor], c.begin),
                    v_max, words_at(masks[c.tensor], c.begin), c.count, &updates[c.tensor]);
  });
}

}  // namespace salun::cpu
