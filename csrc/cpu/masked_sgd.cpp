#include "cpu/loops/loops.h"
#include "cpu/masks.h"
#include "cpu/parallel.h"
#include "cpu/ranks.h"
#include "cpu/weights.h"
#include "ops.h"

namespace salun::cpu {

void masked_sgd(std::span<const Dense> params, std::span<const Dense> grads,
                std::span<const Dense> momentum_buffers, std::span<float* const> steps,
                std::span<const Words> masks, Ranks ranks, const HalfPrecision& half,
                const SgdOptions& options, double lr, float grad_scale) {
  require_ranks(params, masks, ranks, {momentum_buffers});
  const Loops& run = loops();
  bool has_momentum = !momentum_buffers.empty();
  SgdStep step = {
      .coefficients = sgd_coefficients(options, lr),
      .mode = Momentum::none,
      .nesterov = options.nesterov,
      .decay = options.weight_decay != 0.0,
      .maximize = options.maximize,
      .compact = false,
      .grad_scale = grad_scale,
  };
  ChunkPlan(params).for_each([&](const Chunk& c) {
    const Dense& grad = grads[c.tensor];
    Weights weights = weights_at(params, half, c, *steps[c.tensor] + 1.0f);
    float* buffer = nullptr;
    SgdStep mine = step;
    if (has_momentum) {
      const int64_t* places = ranks_of(ranks, c.tensor);
      buffer = state_at(momentum_buffers[c.tensor], places, c);
      mine.compact = places != nullptr;
      mine.mode = *steps[c.tensor] == 0.0f ? Momentum::first : Momentum::running;
    }
    run.masked_sgd(&weights, grad.at(c.begin), grad.dtype, buffer,
                   words_at(masks[c.tensor], c.begin), c.count, &mine);
  });
  for (float* taken : steps) *taken += 1.0f;
}

}  // namespace salun::cpu
