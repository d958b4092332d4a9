// One pass: read grad, param, buffer and bits, write param and buffer; 20 bytes a weight in fp32.
#include "cuda/masked_step.cuh"

namespace salun::cuda {
namespace {

class SgdRule {
 public:
  static constexpr int kStates = 1, kResidentBlocks = 4;
  struct Coefficients {
    SgdCoefficients values;
    Momentum mode;
  };

  explicit SgdRule(const SgdOptions& options) : options_(options) {}

  __device__ bool maximize() const { return options_.maximize; }

  __device__ Coefficients coefficients(double lr, float t) const {
    Momentum mode = options_.momentum == 0.0 ? Momentum::none
                    : t == 1.0f              ? Momentum::first
                                             : Momentum::running;
    return {sgd_coefficients(options_, lr), mode};
  }

  __device__ __forceinline__ void update(const Coefficients& c, float g, float& theta,
                                         float (&states)[kStates]) const {
    switch (c.mode) {
      case Momentum::none: return update_as<Momentum::none>(c.values, g, theta, states[0]);
      case Momentum::first: return update_as<Momentum::first>(c.values, g, theta, states[0]);
      case Momentum::running: return update_as<Momentum::running>(c.values, g, theta, states[0]);
    }
  }

 private:
  template <Momentum Mode>
  __device__ __forceinline__ void update_as(const SgdCoefficients& c, float g, float& theta,
                                            float& buffer) const {
    if (options_.weight_decay == 0.0)
      options_.nesterov ? sgd_update<Mode, true, false>(c, g, theta, buffer)
                        : sgd_update<Mode, false, false>(c, g, theta, buffer);
    else
      options_.nesterov ? sgd_update<Mode, true, true>(c, g, theta, buffer)
                        : sgd_update<Mode, false, true>(c, g, theta, buffer);
  }

  SgdOptions options_;
};

}  // namespace

void masked_sgd(Workspace& workspace, std::span<const Dense> params, std::span<const Dense> grads,
                std::span<const Dense> momentum_buffers, std::span<float* const> steps,
                std::span<const Words> masks, const SgdOptions& options,
                const StepScalars& scalars) {
  StepLists lists = {params, grads, {momentum_buffers}, steps, masks};
  step_lists(workspace, lists, SgdRule(options), scalars);
}

}  // namespace salun::cuda
