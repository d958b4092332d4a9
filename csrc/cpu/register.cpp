// The CPU kernels as torch ops: unwrap, call, and one line per op at the end. Schemas are in
// salun_fast/ops.py.
#include "cpu/parallel.h"
#include "ops.h"
#include "rules/ordered_key.h"
#include "torch_stable.h"

namespace salun::cpu {

void parallel_for(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, n, grain,
                              [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

namespace {

using MaybeTensor = std::optional<Tensor>;

void accumulate_op(const Tensors& scores, const Tensors& grads, int64_t rule, bool zero_grads) {
  require(rule >= 0 && rule <= 2, "rule", "expected 0, 1 or 2");
  accumulate(dense_list_like(scores, scores, "scores", true),
             dense_list_like(grads, scores, "grads"), ScoreRule(rule), zero_grads);
}

std::tuple<Tensors, Tensor> select_op(const Tensors& scores, int64_t k, bool largest,
                                      bool allow_nonfinite) {
  int64_t total = 0;
  for (const Tensor& score : scores) total += score.numel();
  require(k >= 0 && k <= total, "k", "expected at most the number of scores");
  Tensors masks = new_words(scores);
  float threshold = select(strided_list(scores, "scores"), k, largest, allow_nonfinite,
                           word_list(masks, scores, false));
  return {masks, new_scalar(scores[0], threshold)};
}

Tensor select_histogram_op(const Tensors& scores, int64_t prefix, int64_t level, bool largest) {
  require(level >= 0 && level <= 2, "level", "expected 0, 1 or 2");
  int64_t bins = kHistogramBins;
  Tensor counts = torch::stable::new_empty(scores[0], {&bins, 1}, ScalarType::Long);
  select_histogram(strided_list(scores, "scores"), uint32_t(prefix), int(level), largest,
                   {static_cast<int64_t*>(counts.data_ptr()), size_t(bins)});
  return counts;
}

Tensors select_pack_op(const Tensors& scores, int64_t threshold, int64_t ties, bool largest) {
  require(threshold >= 0 && threshold <= kKeyMax, "threshold", "expected an ordered key");
  Tensors masks = new_words(scores);
  select_pack(strided_list(scores, "scores"), uint32_t(threshold), ties, largest,
              word_list(masks, scores, false));
  return masks;
}

void masked_sgd_op(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
                   const Tensors& steps, const Tensors& masks, const Tensor& lr, double momentum,
                   double dampening, double weight_decay, bool nesterov, bool maximize,
                   const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  if (is_nonzero(found_inf)) return;
  require(momentum == 0.0 || momentum_buffers.size() == params.size(), "momentum_buffers",
          "momentum needs one buffer per parameter");
  Tensors like = momentum_buffers.empty() ? Tensors{} : params;
  masked_sgd(dense_list_like(params, params, "params"), dense_list_like(grads, params, "grads"),
             dense_list_like(momentum_buffers, like, "momentum_buffers", true),
             step_list(steps, params), word_list(masks, params, true),
             {.lr = scalar_of(lr, "lr"),
              .momentum = momentum,
              .dampening = dampening,
              .weight_decay = weight_decay,
              .nesterov = nesterov,
              .maximize = maximize,
              .grad_scale = scale_of(grad_scale)});
}

void masked_adam_op(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                    const Tensors& exp_avg_sqs, const Tensors& max_exp_avg_sqs,
                    const Tensors& steps, const Tensors& masks, const Tensor& lr, double beta1,
                    double beta2, double eps, double weight_decay, bool decoupled, bool maximize,
                    const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  if (is_nonzero(found_inf)) return;
  Tensors like = max_exp_avg_sqs.empty() ? Tensors{} : params;
  masked_adam(dense_list_like(params, params, "params"), dense_list_like(grads, params, "grads"),
              dense_list_like(exp_avgs, params, "exp_avgs", true),
              dense_list_like(exp_avg_sqs, params, "exp_avg_sqs", true),
              dense_list_like(max_exp_avg_sqs, like, "max_exp_avg_sqs", true),
              step_list(steps, params), word_list(masks, params, true),
              {.lr = scalar_of(lr, "lr"),
               .beta1 = beta1,
               .beta2 = beta2,
               .eps = eps,
               .weight_decay = weight_decay,
               .decoupled = decoupled,
               .maximize = maximize,
               .grad_scale = scale_of(grad_scale)});
}

Tensor soft_threshold_op(const Tensors& params, const Tensors& anchors, int64_t k) {
  auto moved = dense_list_like(params, params, "params");
  auto fixed = dense_list_like(anchors, params, "anchors");
  int64_t total = 0;
  for (size_t i = 0; i < moved.size(); ++i) {
    require(moved[i].dtype == fixed[i].dtype, "anchors", "expected the parameter's dtype");
    total += moved[i].numel;
  }
  require(k >= 0 && k <= total, "k", "expected at most the number of weights");
  return new_scalar(params[0], soft_threshold(moved, fixed, k));
}

}  // namespace
}  // namespace salun::cpu

STABLE_TORCH_LIBRARY_IMPL(salun_fast, CPU, m) {
  using namespace salun::cpu;
  m.impl("accumulate_", TORCH_BOX(&accumulate_op));
  m.impl("select", TORCH_BOX(&select_op));
  m.impl("select_histogram", TORCH_BOX(&select_histogram_op));
  m.impl("select_pack", TORCH_BOX(&select_pack_op));
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_op));
  m.impl("masked_adam_", TORCH_BOX(&masked_adam_op));
  m.impl("soft_threshold_", TORCH_BOX(&soft_threshold_op));
}
