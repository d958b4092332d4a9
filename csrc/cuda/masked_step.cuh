// What the masked steps share: one small kernel counts the step of every tensor and works out its
// coefficients, one large kernel moves the weights. A rule says what an optimizer does to one
// weight:
//   kStates            fp32 numbers per weight
//   kResidentBlocks    per multiprocessor: as many as fit without spilling registers
//   Coefficients       of one tensor
//   coefficients(lr, t), maximize
//   with_update(coefficients, body): calls body(update) with the one update(g, theta, states) that
//                      the options ask for, so that no weight has to ask again
#pragma once
#include <array>
#include <type_traits>

#include "cuda/group.cuh"
#include "cuda/scalar.cuh"
#include "formats.h"
#include "rules/rounding.h"

namespace salun::cuda {

constexpr int kMaxStates = 3;

struct StepSlot {
  void* param;
  float* master;    // null without
  uint64_t origin;  // flat index of the first element
  const void* grad;
  float* states[kMaxStates];  // null where the rule keeps none
  const uint32_t* words;      // null: every weight moves
  float* step;
  int64_t numel;
};

// Everything a step walks, tensor by tensor.
struct StepLists {
  std::span<const Dense> params, grads;
  std::array<std::span<const Dense>, kMaxStates> states;  // each as long as params, or empty
  std::span<float* const> steps;
  std::span<const Words> masks;
  const HalfPrecision& half;

  StepSlot slot(size_t i) const {
    StepSlot slot = {.param = params[i].data,
                     .master = half.masters.empty() ? nullptr : half.masters[i],
                     .origin = half.stochastic ? uint64_t(half.origins[i]) : 0,
                     .grad = grads[i].data,
                     .states = {},
                     .words = masks[i].data,
                     .step = steps[i],
                     .numel = params[i].numel};
    for (size_t s = 0; s < kMaxStates; ++s)
      if (!states[s].empty()) slot.states[s] = static_cast<float*>(states[s][i].data);
    return slot;
  }
};

template <class Rule>
__global__ void __launch_bounds__(kBlock)
    begin_step(Table<StepSlot> table, Rule rule, StepScalars scalars,
               typename Rule::Coefficients* coefficients) {
  if (value_of(scalars.found_inf) != 0.0) return;
  int64_t i = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= table.count) return;
  float t = *table.slots[i].step + 1.0f;
  *table.slots[i].step = t;
  coefficients[i] = rule.coefficients(value_of(scalars.lr), t);
}

template <class Format>
__device__ __forceinline__ void load_gradients(const void* grads, int64_t at, int count,
                                               float scale, bool maximize, float (&g)[kGroup]) {
  load_values<Format>(grads, at, count, g);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (scale != 1.0f) g[i] = g[i] / scale;
    if (maximize) g[i] = -g[i];
  }
}

struct Stochastic {
  bool on;
  int64_t seed;
};

// Eight weights between memory and registers, rounded to the nearest number of their format.
template <class Format>
class NearestWeights {
 public:
  __device__ __forceinline__ NearestWeights(const StepSlot& slot, Stochastic) : slot_(slot) {}

  __device__ __forceinline__ void load(int64_t at, int count) {
    load_group(static_cast<const Raw*>(slot_.param) + at, count, raw_);
  }
  __device__ __forceinline__ float get(int i) const { return Format::decode(raw_[i]); }
  __device__ __forceinline__ void set(int i, int64_t, float theta) {
    raw_[i] = Format::encode(theta);
  }
  __device__ __forceinline__ void store(int64_t at, int count) const {
    store_group(static_cast<Raw*>(slot_.param) + at, count, raw_);
  }

 private:
  using Raw = typename Format::Raw;
  const StepSlot& slot_;
  Raw raw_[kGroup];
};

// The same by way of a master copy where there is one, or rounded stochastically.
template <class Format>
class CarefulWeights {
 public:
  __device__ __forceinline__ CarefulWeights(const StepSlot& slot, Stochastic stochastic)
      : slot_(slot), stochastic_(stochastic.on), key_(rounding_key(stochastic.seed, *slot.step)) {}

  __device__ __forceinline__ void load(int64_t at, int count) {
    load_group(static_cast<const Raw*>(slot_.param) + at, count, raw_);
    if (slot_.master) return load_group(slot_.master + at, count, theta_);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) theta_[i] = Format::decode(raw_[i]);
  }
  __device__ __forceinline__ float get(int i) const { return theta_[i]; }
  __device__ __forceinline__ void set(int i, int64_t at, float theta) {
    theta_[i] = theta;
    raw_[i] = rounded(theta, slot_.origin + uint64_t(at + i));
  }
  __device__ __forceinline__ void store(int64_t at, int count) const {
    store_group(static_cast<Raw*>(slot_.param) + at, count, raw_);
    if (slot_.master) store_group(slot_.master + at, count, theta_);
  }

 private:
  using Raw = typename Format::Raw;

  __device__ __forceinline__ Raw rounded(float theta, uint64_t index) const {
    if constexpr (std::is_same_v<Format, BFloat16>)
      if (stochastic_) return stochastic_bfloat16(theta, rounding_bits(key_, index));
    return Format::encode(theta);
  }

  const StepSlot& slot_;
  bool stochastic_;
  RoundingKey key_;
  Raw raw_[kGroup];
  float theta_[kGroup];
};

// What both kernels below do. A group without a bit is not touched at all: in fp32 that is one
// memory sector of each array.
template <class Rule, class Weights, class GradFormat>
__device__ __forceinline__ void step_weights(const Table<StepSlot>& table, const Rule& rule,
                                             const StepScalars& scalars, Stochastic stochastic,
                                             const typename Rule::Coefficients* coefficients) {
  if (value_of(scalars.found_inf) != 0.0) return;
  float scale = float(value_of(scalars.grad_scale));
  for_each_chunk(table, [&](const Chunk& chunk) {
    const StepSlot slot = table.slots[chunk.slot];
    const auto constants = coefficients[chunk.slot];
    Weights weights(slot, stochastic);
    for_each_group(chunk, [&](int64_t at, int count) {
      uint32_t moving = slot.words ? group_bits(slot.words, at) : first_bits(count);
      if (moving == 0) return;
      float g[kGroup], states[Rule::kStates][kGroup];
      weights.load(at, count);
      load_gradients<GradFormat>(slot.grad, at, count, scale, rule.maximize(), g);
#pragma unroll
      for (int s = 0; s < Rule::kStates; ++s)
        if (slot.states[s]) load_group(slot.states[s] + at, count, states[s]);
      rule.with_update(constants, [&](auto update) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          if (bit(moving, i) == 0) continue;
          float theta = weights.get(i), own[Rule::kStates];
#pragma unroll
          for (int s = 0; s < Rule::kStates; ++s) own[s] = states[s][i];
          update(g[i], theta, own);
          weights.set(i, at, theta);
#pragma unroll
          for (int s = 0; s < Rule::kStates; ++s) states[s][i] = own[s];
        }
      });
      weights.store(at, count);
#pragma unroll
      for (int s = 0; s < Rule::kStates; ++s)
        if (slot.states[s]) store_group(slot.states[s] + at, count, states[s]);
    });
  });
}

template <class Rule, class ParamFormat, class GradFormat>
__global__ void __launch_bounds__(kBlock, Rule::kResidentBlocks)
    masked_step(Table<StepSlot> table, Rule rule, StepScalars scalars, Stochastic stochastic,
                const typename Rule::Coefficients* coefficients) {
  step_weights<Rule, NearestWeights<ParamFormat>, GradFormat>(table, rule, scalars, stochastic,
                                                              coefficients);
}

// For masters and stochastic rounding: more registers, so fewer blocks at a time.
template <class Rule, class ParamFormat, class GradFormat>
__global__ void __launch_bounds__(kBlock, 2)
    careful_step(Table<StepSlot> table, Rule rule, StepScalars scalars, Stochastic stochastic,
                 const typename Rule::Coefficients* coefficients) {
  step_weights<Rule, CarefulWeights<ParamFormat>, GradFormat>(table, rule, scalars, stochastic,
                                                              coefficients);
}

template <class Rule, class ParamFormat, class GradFormat>
void step_group(Workspace& workspace, const std::vector<StepSlot>& slots, const Rule& rule,
                const StepScalars& scalars, const HalfPrecision& half) {
  auto table = upload(workspace, slots);
  auto* coefficients = scratch<typename Rule::Coefficients>(workspace, table.count);
  cudaStream_t stream = stream_of(workspace);
  LAUNCH((begin_step<Rule>), blocks_for(table.count), kBlock, stream, table, rule, scalars,
         coefficients);
  if (table.chunks == 0) return;
  const Stochastic stochastic = {half.stochastic, half.seed};
  if constexpr (!std::is_same_v<ParamFormat, Float32>) {
    if (half.stochastic || !half.masters.empty()) {
      LAUNCH((careful_step<Rule, ParamFormat, GradFormat>), grid_for(table.chunks), kBlock, stream,
             table, rule, scalars, stochastic, coefficients);
      return;
    }
  }
  LAUNCH((masked_step<Rule, ParamFormat, GradFormat>), grid_for(table.chunks), kBlock, stream,
         table, rule, scalars, stochastic, coefficients);
}

// Tensors whose dtypes agree go together.
template <class Rule>
void step_lists(Workspace& workspace, const StepLists& lists, const Rule& rule,
                const StepScalars& scalars) {
  for (Dtype param : kDtypes)
    for (Dtype grad : kDtypes) {
      std::vector<StepSlot> slots;
      for (size_t i = 0; i < lists.params.size(); ++i)
        if (lists.params[i].dtype == param && lists.grads[i].dtype == grad)
          slots.push_back(lists.slot(i));
      if (slots.empty()) continue;
      with_format(param, [&](auto param_format) {
        with_format(grad, [&](auto grad_format) {
          step_group<Rule, decltype(param_format), decltype(grad_format)>(workspace, slots, rule,
                                                                          scalars, lists.half);
        });
      });
    }
}

}  // namespace salun::cuda
