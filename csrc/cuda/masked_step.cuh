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

// The weights of a group as fp32: of the master copy where there is one.
template <class Format>
__device__ __forceinline__ void load_weights(const StepSlot& slot, int64_t at, int count,
                                             const typename Format::Raw (&param)[kGroup],
                                             float (&theta)[kGroup]) {
  if (slot.master) return load_group(slot.master + at, count, theta);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) theta[i] = Format::decode(param[i]);
}

template <class Format>
__device__ __forceinline__ typename Format::Raw rounded(float theta, const Stochastic& stochastic,
                                                        RoundingKey key, uint64_t index) {
  if constexpr (std::is_same_v<Format, BFloat16>)
    if (stochastic.on) return stochastic_bfloat16(theta, rounding_bits(key, index));
  return Format::encode(theta);
}

// A group without a bit is not touched at all: in fp32 that is one memory sector of each array.
template <class Rule, class ParamFormat, class GradFormat>
__global__ void __launch_bounds__(kBlock, Rule::kResidentBlocks)
    masked_step(Table<StepSlot> table, Rule rule, StepScalars scalars, Stochastic stochastic,
                const typename Rule::Coefficients* coefficients) {
  using Raw = typename ParamFormat::Raw;
  if (value_of(scalars.found_inf) != 0.0) return;
  float scale = float(value_of(scalars.grad_scale));
  for_each_chunk(table, [&](const Chunk& chunk) {
    const StepSlot slot = table.slots[chunk.slot];
    const auto constants = coefficients[chunk.slot];
    const RoundingKey key = rounding_key(stochastic.seed, *slot.step);
    for_each_group(chunk, [&](int64_t at, int count) {
      uint32_t moving = slot.words ? group_bits(slot.words, at) : first_bits(count);
      if (moving == 0) return;
      Raw param[kGroup];
      float g[kGroup], theta[kGroup], states[Rule::kStates][kGroup];
      auto* memory = static_cast<Raw*>(slot.param) + at;
      load_group(memory, count, param);
      load_weights<ParamFormat>(slot, at, count, param, theta);
      load_gradients<GradFormat>(slot.grad, at, count, scale, rule.maximize(), g);
#pragma unroll
      for (int s = 0; s < Rule::kStates; ++s)
        if (slot.states[s]) load_group(slot.states[s] + at, count, states[s]);
      rule.with_update(constants, [&](auto update) {
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          if (bit(moving, i) == 0) continue;
          float own[Rule::kStates];
#pragma unroll
          for (int s = 0; s < Rule::kStates; ++s) own[s] = states[s][i];
          update(g[i], theta[i], own);
          param[i] =
              rounded<ParamFormat>(theta[i], stochastic, key, slot.origin + uint64_t(at + i));
#pragma unroll
          for (int s = 0; s < Rule::kStates; ++s) states[s][i] = own[s];
        }
      });
      store_group(memory, count, param);
      if (slot.master) store_group(slot.master + at, count, theta);
#pragma unroll
      for (int s = 0; s < Rule::kStates; ++s)
        if (slot.states[s]) store_group(slot.states[s] + at, count, states[s]);
    });
  });
}

template <class Rule, class ParamFormat, class GradFormat>
void step_group(Workspace& workspace, const std::vector<StepSlot>& slots, const Rule& rule,
                const StepScalars& scalars, const Stochastic& stochastic) {
  auto table = upload(workspace, slots);
  auto* coefficients = scratch<typename Rule::Coefficients>(workspace, table.count);
  cudaStream_t stream = stream_of(workspace);
  LAUNCH((begin_step<Rule>), blocks_for(table.count), kBlock, stream, table, rule, scalars,
         coefficients);
  if (table.chunks == 0) return;
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
          step_group<Rule, decltype(param_format), decltype(grad_format)>(
              workspace, slots, rule, scalars, {lists.half.stochastic, lists.half.seed});
        });
      });
    }
}

}  // namespace salun::cuda
