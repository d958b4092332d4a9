// One pass: read grad, param, buffer and bits, write param and buffer; 20 bytes a weight in fp32.
#include "cuda/masked_step.cuh"

namespace salun::cuda {
namespace {

class SgdRule {
 public:
  static constexpr int kStates = 1, kResidentBlocks = 4, kCompactBlocks = 4;
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

  template <class Body>
  __device__ __forceinline__ void with_update(const Coefficients& c, Body body) const {
    switch (c.mode) {
      case Momentum::none: return with_mode<Momentum::none>(c.values, body);
      case Momentum::first: return with_mode<Momentum::first>(c.values, body);
      case Momentum::running: return with_mode<Momentum::running>(c.values, body);
    }
  }

 private:
  template <Momentum Mode, class Body>
  __device__ __forceinline__ void with_mode(const SgdCoefficients& c, Body body) const {
    if (options_.weight_decay == 0.0)
      options_.nesterov ? body(update_as<Mode, true, false>(c))
                        : body(update_as<Mode, false, false>(c));
    else
      options_.nesterov ? body(update_as<Mode, true, true>(c))
                        : body(update_as<Mode, false, true>(c));
  }

  template <Momentum Mode, bool Nesterov, bool Decay>
  __device__ __forceinline__ static auto update_as(const SgdCoefficients& c) {
    return [&c](float g, float& theta, float (&states)[kStates]) {
      sgd_update<Mode, Nesterov, Decay>(c, g, theta, states[0]);
    };
  }

  SgdOptions options_;
};

}  // namespace

void masked_sgd(Workspace& workspace, std::span<const Dense> params, std::span<const Dense> grads,
                std::span<const Dense> momentum_buffers, std::span<float* const> steps,
                std::span<const Words> masks, Ranks ranks, const HalfPrecision& half,
                const SgdOptions& options, const StepScalars& scalars) {
  StepLists lists = {params, grads, {momentum_buffers}, steps, masks, ranks, half};
  step_lists(workspace, lists, SgdRule(options), scalars);
}

}  // namespace salun::cuda
