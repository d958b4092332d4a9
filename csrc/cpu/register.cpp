// The CPU kernels as torch ops.
#include "cpu/parallel.h"
#include "torch_ops.h"

namespace salun::cpu {

void parallel_for(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

namespace {

using DenseSpan = std::span<const Dense>;
using StridedSpan = std::span<const Strided>;
using WordsSpan = std::span<const Words>;
using StepSpan = std::span<float* const>;

bool is_nonzero(const MaybeTensor& found_inf) {
  return found_inf && number_of(*found_inf, "found_inf") != 0.0;
}

float scale_of(const MaybeTensor& grad_scale) {
  return grad_scale ? float(number_of(*grad_scale, "grad_scale")) : 1.0f;
}

struct CpuBackend {
  explicit CpuBackend(const Tensor&) {}

  void accumulate(DenseSpan scores, DenseSpan grads, ScoreRule rule, bool zero_grads) {
    cpu::accumulate(scores, grads, rule, zero_grads);
  }

  void select(StridedSpan scores, int64_t k, bool largest, bool allow_nonfinite, WordsSpan masks,
              float* threshold) {
    *threshold = cpu::select(scores, k, largest, allow_nonfinite, masks);
  }

  void select_histogram(StridedSpan scores, uint32_t prefix, int level, bool largest,
                        int64_t* counts) {
    cpu::select_histogram(scores, prefix, level, largest, {counts, size_t(kHistogramBins)});
  }

  void select_pack(StridedSpan scores, uint32_t threshold, int64_t ties, bool largest,
                   WordsSpan masks) {
    cpu::select_pack(scores, threshold, ties, largest, masks);
  }

  void masked_sgd(DenseSpan params, DenseSpan grads, DenseSpan buffers, StepSpan steps,
                  WordsSpan masks, const HalfPrecision& half, const SgdOptions& options,
                  const StepTensors& tensors) {
    if (is_nonzero(tensors.found_inf)) return;
    cpu::masked_sgd(params, grads, buffers, steps, masks, half, options,
                    number_of(tensors.lr, "lr"), scale_of(tensors.grad_scale));
  }

  void masked_adam(DenseSpan params, DenseSpan grads, DenseSpan exp_avgs, DenseSpan exp_avg_sqs,
                   DenseSpan max_exp_avg_sqs, StepSpan steps, WordsSpan masks,
                   const HalfPrecision& half, const AdamOptions& options,
                   const StepTensors& tensors) {
    if (is_nonzero(tensors.found_inf)) return;
    cpu::masked_adam(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, masks, half,
                     options, number_of(tensors.lr, "lr"), scale_of(tensors.grad_scale));
  }

  void soft_threshold(DenseSpan params, DenseSpan anchors, int64_t k, float* tau) {
    *tau = cpu::soft_threshold(params, anchors, k);
  }

  void per_sample(const WeightScores& scores, const Images& grads, const Images& inputs,
                  const Window& window, float scale) {
    cpu::per_sample(scores, grads, inputs, window, scale);
  }
};

}  // namespace
}  // namespace salun::cpu

STABLE_TORCH_LIBRARY_IMPL(salun_fast, CPU, m) {
  salun::TorchOps<salun::cpu::CpuBackend>::add_to(m);
}
