// One pass: read grad, param, both moments and bits, write all but grad; 28 bytes a weight in fp32.
#include "cuda/masked_step.cuh"

namespace salun::cuda {
namespace {

template <bool Amsgrad>
class AdamRule {
 public:
  static constexpr int kStates = Amsgrad ? 3 : 2;
  static constexpr int kResidentBlocks = Amsgrad ? 2 : 3, kCompactBlocks = 2;
  using Coefficients = AdamCoefficients;

  explicit AdamRule(const AdamOptions& options) : options_(options) {}

  __device__ bool maximize() const { return options_.maximize; }

  __device__ Coefficients coefficients(double lr, float t) const {
    return adam_coefficients(options_, lr, t);
  }

  template <class Body>
  __device__ __forceinline__ void with_update(const Coefficients& c, Body body) const {
    switch (decay_of(options_)) {
      case Decay::none: return body(update_as<Decay::none>(c));
      case Decay::coupled: return body(update_as<Decay::coupled>(c));
      case Decay::decoupled: return body(update_as<Decay::decoupled>(c));
    }
  }

 private:
  template <Decay Kind>
  __device__ __forceinline__ static auto update_as(const Coefficients& c) {
    return [&c](float g, float& theta, float (&states)[kStates]) {
      float unused = 0.0f;
      adam_update<Kind, Amsgrad>(c, g, theta, states[0], states[1],
                                 Amsgrad ? states[kStates - 1] : unused);
    };
  }

  AdamOptions options_;
};

}  // namespace

void masked_adam(Workspace& workspace, std::span<const Dense> params, std::span<const Dense> grads,
                 std::span<const Dense> exp_avgs, std::span<const Dense> exp_avg_sqs,
                 std::span<const Dense> max_exp_avg_sqs, std::span<float* const> steps,
                 std::span<const Words> masks, Ranks ranks, const HalfPrecision& half,
                 const AdamOptions& options, const StepScalars& scalars) {
  StepLists lists = {params, grads, {exp_avgs, exp_avg_sqs, max_exp_avg_sqs}, steps, masks,
                     ranks,  half};
  if (max_exp_avg_sqs.empty())
    step_lists(workspace, lists, AdamRule<false>(options), scalars);
  else
    step_lists(workspace, lists, AdamRule<true>(options), scalars);
}

}  // namespace salun::cuda
