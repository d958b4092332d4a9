// What the masked steps share: one small kernel counts the step of every tensor and works out its
// coefficients, one large kernel moves the weights. A rule says what an optimizer does to one
// weight:
//   kStates            fp32 numbers per weight
//   kResidentBlocks    per multiprocessor: as many as fit without spilling registers
//   kCompactBlocks     the same with compact state
//   Coefficients       of one tensor
//   coefficients(lr, t), maximize
//   with_update(coefficients, body): calls body(update) with the one update(g, theta, states) that
//                      the options ask for, so that no weight has to ask again
#pragma once
#include <array>
#include <type_traits>

#include "cuda/group.cuh"
#include "cuda/scalar.cuh"
#include "cuda/warp.cuh"
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
  int64_t kept;               // elements of each state: numel, or fewer where it is compact
  const uint32_t* words;      // null: every weight moves
  const int64_t* ranks;       // null: state is not compact
  float* step;
  int64_t numel;
};

// Everything a step walks, tensor by tensor.
struct StepLists {
  std::span<const Dense> params, grads;
  std::array<std::span<const Dense>, kMaxStates> states;  // each as long as params, or empty
  std::span<float* const> steps;
  std::span<const Words> masks;
  Ranks ranks;
  const HalfPrecision& half;

  bool compact(size_t i) const { return !ranks.empty() && ranks[i] && !states[0].empty(); }

  StepSlot slot(size_t i) const {
    StepSlot slot = {.param = params[i].data,
                     .master = half.masters.empty() ? nullptr : half.masters[i],
                     .origin = half.stochastic ? uint64_t(half.origins[i]) : 0,
                     .grad = grads[i].data,
                     .states = {},
                     .kept = params[i].numel,
                     .words = masks[i].data,
                     .ranks = compact(i) ? ranks[i] : nullptr,
                     .step = steps[i],
                     .numel = params[i].numel};
    for (size_t s = 0; s < kMaxStates; ++s)
      if (!states[s].empty()) {
        slot.states[s] = static_cast<float*>(states[s][i].data);
        slot.kept = std::min(slot.kept, states[s][i].numel);
      }
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

// State laid out as its parameter.
template <int States>
class DenseState {
 public:
  static constexpr bool kCompact = false;

  __device__ __forceinline__ explicit DenseState(const StepSlot& slot) : slot_(slot) {}

  // Calls body(at, count, moving) for the groups of this thread; moving: their bits.
  template <class Body>
  __device__ __forceinline__ void for_each_group(const Chunk& chunk, Body body) {
    salun::cuda::for_each_group(chunk, [&](int64_t at, int count) {
      body(at, count, slot_.words ? group_bits(slot_.words, at) : first_bits(count));
    });
  }
  __device__ __forceinline__ void load(int64_t at, int count, uint32_t,
                                       float (&states)[States][kGroup]) const {
#pragma unroll
    for (int s = 0; s < States; ++s)
      if (slot_.states[s]) load_group(slot_.states[s] + at, count, states[s]);
  }
  __device__ __forceinline__ void store(int64_t at, int count, uint32_t,
                                        const float (&states)[States][kGroup]) const {
#pragma unroll
    for (int s = 0; s < States; ++s)
      if (slot_.states[s]) store_group(slot_.states[s] + at, count, states[s]);
  }

 private:
  const StepSlot& slot_;
};

// State of the selected weights alone, one behind the other.
template <int States>
class CompactState {
 public:
  static constexpr bool kCompact = true;

  __device__ __forceinline__ explicit CompactState(const StepSlot& slot) : slot_(slot) {}

  // All threads of a warp take part in every turn, with a group or without: they count together.
  template <class Body>
  __device__ __forceinline__ void for_each_group(const Chunk& chunk, Body body) {
    static_assert(kChunk == kRankRun);
    const int64_t rank = slot_.ranks[chunk.begin / kRankRun];
    for (int turn = 0; turn < chunk.count; turn += kBlock * kGroup) {
      const int at = turn + int(threadIdx.x) * kGroup, left = chunk.count - at;
      const int count = left < 0 ? 0 : left < kGroup ? left : kGroup;
      const int64_t place = chunk.begin + at;
      uint32_t moving = count > 0 ? group_bits(slot_.words, place) & first_bits(count) : 0;
      const uint32_t ones = uint32_t(__popc(moving));
      first_ = rank + ones_before(chunk, at, ones);
      if (first_ < 0 || first_ + ones > slot_.kept) moving = 0;  // ranks of another mask
      body(place, count, moving);
    }
  }
  __device__ __forceinline__ void load(int64_t, int, uint32_t moving,
                                       float (&states)[States][kGroup]) const {
#pragma unroll
    for (int s = 0; s < States; ++s) {
      const float* from = slot_.states[s] + first_;
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (bit(moving, i)) states[s][i] = *from++;
    }
  }
  __device__ __forceinline__ void store(int64_t, int, uint32_t moving,
                                        const float (&states)[States][kGroup]) const {
#pragma unroll
    for (int s = 0; s < States; ++s) {
      float* to = slot_.states[s] + first_;
#pragma unroll
      for (int i = 0; i < kGroup; ++i)
        if (bit(moving, i)) *to++ = states[s][i];
    }
  }

 private:
  // Ones of the chunk before the group of this thread, which has `own`: those before the warp's
  // first group by words that its lanes share, those within the warp by a scan over the lanes.
  __device__ __forceinline__ int64_t ones_before(const Chunk& chunk, int at, uint32_t own) const {
    const int lane = int(threadIdx.x) % kWarp, begin = at - lane * kGroup;
    const int words = int(word_count(begin < chunk.count ? begin : chunk.count));
    const uint32_t* first = slot_.words + chunk.begin / kWordBits;
    uint32_t before = 0;
    for (int w = lane; w < words; w += kWarp) before += uint32_t(__popc(first[w]));
    return int64_t(warp_sum(before)) + (warp_sum_upto(own) - own);
  }

  const StepSlot& slot_;
  int64_t first_ = 0;  // of this thread's group, in each state
};

// What all kernels below do. A group without a bit is not touched at all: in fp32 that is one
// memory sector of each array.
template <class Rule, class Weights, class State, class GradFormat>
__device__ __forceinline__ void step_weights(const Table<StepSlot>& table, const Rule& rule,
                                             const StepScalars& scalars, Stochastic stochastic,
                                             const typename Rule::Coefficients* coefficients) {
  if (value_of(scalars.found_inf) != 0.0) return;
  float scale = float(value_of(scalars.grad_scale));
  for_each_chunk(table, [&](const Chunk& chunk) {
    const StepSlot slot = table.slots[chunk.slot];
    const auto constants = coefficients[chunk.slot];
    Weights weights(slot, stochastic);
    State state(slot);
    state.for_each_group(chunk, [&](int64_t at, int count, uint32_t moving) {
      if (moving == 0) return;
      float g[kGroup], states[Rule::kStates][kGroup];
      weights.load(at, count);
      load_gradients<GradFormat>(slot.grad, at, count, scale, rule.maximize(), g);
      state.load(at, count, moving, states);
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
      state.store(at, count, moving, states);
    });
  });
}

// State: DenseState or CompactState.
template <class Rule, class ParamFormat, class GradFormat, template <int> class State>
__global__ void __launch_bounds__(kBlock, State<Rule::kStates>::kCompact ? Rule::kCompactBlocks
                                                                         : Rule::kResidentBlocks)
    masked_step(Table<StepSlot> table, Rule rule, StepScalars scalars, Stochastic stochastic,
                const typename Rule::Coefficients* coefficients) {
  step_weights<Rule, NearestWeights<ParamFormat>, State<Rule::kStates>, GradFormat>(
      table, rule, scalars, stochastic, coefficients);
}

// For masters and stochastic rounding: more registers, so fewer blocks at a time.
template <class Rule, class ParamFormat, class GradFormat, template <int> class State>
__global__ void __launch_bounds__(kBlock, 2)
    careful_step(Table<StepSlot> table, Rule rule, StepScalars scalars, Stochastic stochastic,
                 const typename Rule::Coefficients* coefficients) {
  step_weights<Rule, CarefulWeights<ParamFormat>, State<Rule::kStates>, GradFormat>(
      table, rule, scalars, stochastic, coefficients);
}

template <class Rule, class ParamFormat, class GradFormat, template <int> class State>
void step_group(Workspace& workspace, const std::vector<StepSlot>& slots, const Rule& rule,
                const StepScalars& scalars, const HalfPrecision& half) {
  if (slots.empty()) return;
  auto table = upload(workspace, slots);
  auto* coefficients = scratch<typename Rule::Coefficients>(workspace, table.count);
  cudaStream_t stream = stream_of(workspace);
  LAUNCH((begin_step<Rule>), blocks_for(table.count), kBlock, stream, table, rule, scalars,
         coefficients);
  if (table.chunks == 0) return;
  const Stochastic stochastic = {half.stochastic, half.seed};
  if constexpr (!std::is_same_v<ParamFormat, Float32>) {
    if (half.stochastic || !half.masters.empty()) {
      LAUNCH((careful_step<Rule, ParamFormat, GradFormat, State>), grid_for(table.chunks), kBlock,
             stream, table, rule, scalars, stochastic, coefficients);
      return;
    }
  }
  LAUNCH((masked_step<Rule, ParamFormat, GradFormat, State>), grid_for(table.chunks), kBlock,
         stream, table, rule, scalars, stochastic, coefficients);
}

// Tensors go together whose dtypes agree, and whose state is of one kind.
template <class Rule>
void step_lists(Workspace& workspace, const StepLists& lists, const Rule& rule,
                const StepScalars& scalars) {
  for (Dtype param : kDtypes)
    for (Dtype grad : kDtypes) {
      std::vector<StepSlot> dense, compact;
      for (size_t i = 0; i < lists.params.size(); ++i)
        if (lists.params[i].dtype == param && lists.grads[i].dtype == grad)
          (lists.compact(i) ? compact : dense).push_back(lists.slot(i));
      with_format(param, [&](auto param_format) {
        with_format(grad, [&](auto grad_format) {
          using Param = decltype(param_format);
          using Grad = decltype(grad_format);
          step_group<Rule, Param, Grad, DenseState>(workspace, dense, rule, scalars, lists.half);
          step_group<Rule, Param, Grad, CompactState>(workspace, compact, rule, scalars,
                                                      lists.half);
        });
      });
    }
}

}  // namespace salun::cuda
