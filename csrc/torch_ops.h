// The ops as torch sees them, once for all backends: unwrap, check, call. A backend is made from
// the first tensor of a call and has a method for each kernel entry of ops.h.
#pragma once
#include "ops.h"
#include "rules/ordered_key.h"
#include "torch_stable.h"

namespace salun {

// What may change from step to step, as torch hands it over.
struct StepTensors {
  const Tensor& lr;
  const MaybeTensor &grad_scale, &found_inf;
};

// Holds what HalfPrecision points to.
class HalfTensors {
 public:
  HalfTensors(const Tensors& masters, const Tensors& params, const std::vector<int64_t>& origins,
              std::optional<int64_t> seed)
      : masters_(master_list(masters, params)), origins_(origins), seed_(seed) {
    if (!seed) return;
    require(origins.size() == params.size(), "origins", "expected one per parameter");
    for (const Tensor& param : params)
      require(param.scalar_type() != ScalarType::Half, "params",
              "stochastic rounding is for bfloat16, found float16");
  }

  operator HalfPrecision() const {
    return {masters_, origins_, seed_.has_value(), seed_.value_or(0)};
  }

 private:
  std::vector<float*> masters_;
  const std::vector<int64_t>& origins_;
  std::optional<int64_t> seed_;
};

template <class Backend>
struct TorchOps {
  static void accumulate(const Tensors& scores, const Tensors& grads, int64_t rule,
                         bool zero_grads) {
    require(rule >= 0 && rule <= 2, "rule", "expected 0, 1 or 2");
    auto written = dense_list_like(scores, scores, "scores", true);
    Backend(scores[0]).accumulate(written, dense_list_like(grads, scores, "grads"), ScoreRule(rule),
                                  zero_grads);
  }

  static std::tuple<Tensors, Tensor> select(const Tensors& scores, int64_t k, bool largest,
                                            bool allow_nonfinite) {
    auto ranked = strided_list(scores, "scores");
    require(k >= 0 && k <= total_of(ranked), "k", "expected at most the number of scores");
    Tensors masks = new_words(scores);
    Tensor threshold = new_scalar(scores[0]);
    Backend(scores[0]).select(ranked, k, largest, allow_nonfinite, word_list(masks, scores, false),
                              data_of<float>(threshold));
    return {masks, threshold};
  }

  static Tensor select_histogram(const Tensors& scores, int64_t prefix, int64_t level,
                                 bool largest) {
    require(level >= 0 && level <= 2, "level", "expected 0, 1 or 2");
    int64_t bins = kHistogramBins;
    Tensor counts = torch::stable::new_empty(scores[0], {&bins, 1}, ScalarType::Long);
    Backend(scores[0]).select_histogram(strided_list(scores, "scores"), uint32_t(prefix),
                                        int(level), largest, data_of<int64_t>(counts));
    return counts;
  }

  static Tensors select_pack(const Tensors& scores, int64_t threshold, int64_t ties, bool largest) {
    require(threshold >= 0 && threshold <= kKeyMax, "threshold", "expected an ordered key");
    require(ties >= 0, "ties", "expected 0 or more");
    Tensors masks = new_words(scores);
    Backend(scores[0]).select_pack(strided_list(scores, "scores"), uint32_t(threshold), ties,
                                   largest, word_list(masks, scores, false));
    return masks;
  }

  static void masked_sgd(const Tensors& params, const Tensors& grads,
                         const Tensors& momentum_buffers, const Tensors& steps,
                         const Tensors& masks, const Tensors& masters, const Tensor& lr,
                         double momentum, double dampening, double weight_decay, bool nesterov,
                         bool maximize, const MaybeTensor& grad_scale, const MaybeTensor& found_inf,
                         const std::vector<int64_t>& origins, std::optional<int64_t> seed) {
    require(momentum == 0.0 || momentum_buffers.size() == params.size(), "momentum_buffers",
            "momentum needs one buffer per parameter");
    Backend(params[0]).masked_sgd(
        dense_list_like(params, params, "params"), dense_list_like(grads, params, "grads"),
        state_list(momentum_buffers, params, "momentum_buffers"), step_list(steps, params),
        word_list(masks, params, true), HalfTensors(masters, params, origins, seed),
        {.momentum = momentum,
         .dampening = dampening,
         .weight_decay = weight_decay,
         .nesterov = nesterov,
         .maximize = maximize},
        {lr, grad_scale, found_inf});
  }

  static void masked_adam(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs,
                          const Tensors& exp_avg_sqs, const Tensors& max_exp_avg_sqs,
                          const Tensors& steps, const Tensors& masks, const Tensors& masters,
                          const Tensor& lr, double beta1, double beta2, double eps,
                          double weight_decay, bool decoupled, bool maximize,
                          const MaybeTensor& grad_scale, const MaybeTensor& found_inf,
                          const std::vector<int64_t>& origins, std::optional<int64_t> seed) {
    Backend(params[0]).masked_adam(
        dense_list_like(params, params, "params"), dense_list_like(grads, params, "grads"),
        dense_list_like(exp_avgs, params, "exp_avgs", true),
        dense_list_like(exp_avg_sqs, params, "exp_avg_sqs", true),
        state_list(max_exp_avg_sqs, params, "max_exp_avg_sqs"), step_list(steps, params),
        word_list(masks, params, true), HalfTensors(masters, params, origins, seed),
        {.beta1 = beta1,
         .beta2 = beta2,
         .eps = eps,
         .weight_decay = weight_decay,
         .decoupled = decoupled,
         .maximize = maximize},
        {lr, grad_scale, found_inf});
  }

  static Tensor soft_threshold(const Tensors& params, const Tensors& anchors, int64_t k) {
    auto moved = dense_list_like(params, params, "params");
    auto fixed = dense_list_like(anchors, params, "anchors");
    for (size_t i = 0; i < moved.size(); ++i)
      require(moved[i].dtype == fixed[i].dtype, "anchors", "expected the parameter's dtype");
    require(k >= 0 && k <= total_of(moved), "k", "expected at most the number of weights");
    Tensor tau = new_scalar(params[0]);
    Backend(params[0]).soft_threshold(moved, fixed, k, data_of<float>(tau));
    return tau;
  }

  static void per_sample(const Tensor& scores, const Tensor& grads, const Tensor& inputs,
                         const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                         const std::vector<int64_t>& dilation, int64_t groups, double scale) {
    require_same_device(grads, scores, "grads");
    require_same_device(inputs, scores, "inputs");
    WeightScores weights = weight_scores(scores);
    Images outer = images(grads, "grads"), inner = images(inputs, "inputs");
    Window window = {{scores.size(2), scores.size(3)}, {}, {}, {}, groups};
    for (size_t d = 0; d < 2; ++d) {
      require(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, "window",
              "expected two numbers each");
      require(stride[d] > 0 && padding[d] >= 0 && dilation[d] > 0, "window", "out of range");
      window.stride[d] = stride[d];
      window.padding[d] = padding[d];
      window.dilation[d] = dilation[d];
      int64_t size = d == 0 ? inner.height : inner.width;
      int64_t reach = dilation[d] * (window.kernel[d] - 1) + 1;
      int64_t places = d == 0 ? outer.height : outer.width;
      require((places - 1) * stride[d] + reach <= size + 2 * padding[d], "grads",
              "more places than the inputs have windows");
    }
    require(groups > 0 && weights.outputs % groups == 0, "groups", "must divide the outputs");
    require(outer.samples == inner.samples, "grads", "expected as many samples as inputs");
    require(outer.channels == weights.outputs, "grads", "expected a channel per output");
    require(inner.channels == weights.inputs * groups, "inputs", "unlike the weight's");
    Backend(scores).per_sample(weights, outer, inner, window, float(scale));
  }

  // One line per op; schemas are in salun_fast/ops.py.
  template <class Library>
  static void add_to(Library& library) {
    library.impl("accumulate_", TORCH_BOX(&TorchOps::accumulate));
    library.impl("select", TORCH_BOX(&TorchOps::select));
    library.impl("select_histogram", TORCH_BOX(&TorchOps::select_histogram));
    library.impl("select_pack", TORCH_BOX(&TorchOps::select_pack));
    library.impl("masked_sgd_", TORCH_BOX(&TorchOps::masked_sgd));
    library.impl("masked_adam_", TORCH_BOX(&TorchOps::masked_adam));
    library.impl("soft_threshold_", TORCH_BOX(&TorchOps::soft_threshold));
    library.impl("per_sample_", TORCH_BOX(&TorchOps::per_sample));
  }
};

}  // namespace salun
