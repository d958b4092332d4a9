// The ops that walk memory: accumulate, the masked steps, soft_threshold.
#include <stdexcept>

#include "cases.h"
#include "rules/bits.h"

namespace {

using namespace salun;

void check_accumulate(const std::vector<int64_t>& sizes, Dtype dtype, ScoreRule rule, bool zero) {
  List scores = random_list(sizes, Dtype::f32, 1), grads = random_list(sizes, dtype, 2);
  List wanted_scores = scores, wanted_grads = grads;
  scalar::accumulate(wanted_scores, wanted_grads, rule, zero);
  cpu::accumulate(dense(scores), dense(grads), rule, zero);
  expect_same(scores, wanted_scores, at("accumulate", dtype, sizes.size()));
  expect_same(grads, wanted_grads, at("accumulate's gradients", dtype, sizes.size()));
}

// By turns: random bits, all weights, none, and no words at all. Bits past the end are 0.
Masks step_masks(const std::vector<int64_t>& sizes) {
  Masks masks(sizes, 0);
  std::mt19937 random(21);
  for (size_t t = 0; t < sizes.size(); ++t) {
    for (int64_t i = 0; i < sizes[t]; ++i)
      if (t % 4 == 1 || (t % 4 == 0 && random() % 2)) masks.set(t, i);
    masks.present[t] = t % 4 != 3;
  }
  return masks;
}

// NaN and infinity where the weight is frozen: they must not matter.
void poison_frozen(List& list, const Masks& masks) {
  for (size_t t = 0; t < list.size(); ++t)
    for (int64_t i = 0; i < list[t].numel; ++i)
      if (!masks.get(t, i))
        list[t].set(i, i % 2 ? std::numeric_limits<float>::quiet_NaN()
                             : std::numeric_limits<float>::infinity());
}

// One parameter takes its first gradient later than the others.
std::vector<float> first_steps(size_t count) {
  std::vector<float> steps(count, 0.0f);
  for (size_t t = 0; t < count; t += 3) steps[t] = 7.0f;
  return steps;
}

// What of a list belongs to selected weights, where a parameter has a mask; as steps take it.
List compressed(const List& list, const Masks& masks) {
  List result;
  for (size_t t = 0; t < list.size(); ++t) {
    if (!masks.present[t]) {
      result.push_back(list[t]);
      continue;
    }
    result.emplace_back(list[t].dtype, masks.ones(t, list[t].numel));
    for (int64_t i = 0, at = 0; i < list[t].numel; ++i)
      if (masks.get(t, i)) result[t].set(at++, list[t].get(i));
  }
  return result;
}

// The ranks of masks, in memory that is watched.
struct RankLists {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<const int64_t*> pointers;

  RankLists(const std::vector<int64_t>& sizes, const Masks& masks) {
    for (size_t t = 0; t < sizes.size(); ++t) {
      std::vector<int64_t> ranks;
      for (int64_t run = 0; run < rank_count(sizes[t]); ++run)
        ranks.push_back(masks.ones(t, std::min(run * kRankRun, sizes[t])));
      blocks.push_back(std::make_unique<Block>(ranks.size() * sizeof(int64_t)));
      std::memcpy(blocks[t]->data(), ranks.data(), blocks[t]->bytes());
      auto* data = reinterpret_cast<const int64_t*>(blocks[t]->data());
      pointers.push_back(masks.present[t] ? data : nullptr);
    }
  }
};

// What a step is told: its options, and what may change from step to step.
template <class Options>
struct Hyper {
  double lr;
  Options options;
  float grad_scale;
};

enum class Rounding { nearest, master, stochastic };

// Masters that no half holds, one of them left out; origins on both sides of 2^32.
scalar::Half some_half(const List& params, Rounding rounding) {
  scalar::Half half;
  half.stochastic = rounding == Rounding::stochastic;
  half.seed = -3;
  for (size_t t = 0; t < params.size(); ++t) {
    half.origins.push_back((int64_t(1) << 32) - 20000 + int64_t(t));
    if (rounding != Rounding::master) continue;
    half.masters.emplace_back(Dtype::f32, t % 5 == 4 ? 0 : params[t].numel);
    for (int64_t i = 0; i < half.masters[t].numel; ++i)
      half.masters[t].set(i, params[t].get(i) * 1.0001f);
  }
  return half;
}

void check_sgd(const std::vector<int64_t>& sizes, Dtype dtype, Dtype grad_dtype,
               const Hyper<SgdOptions>& hyper, Rounding rounding = Rounding::nearest) {
  List params = random_list(sizes, dtype, 31);
  List buffers = hyper.options.momentum != 0 ? random_list(sizes, Dtype::f32, 32) : List{};
  Masks masks = step_masks(sizes);
  poison_frozen(params, masks);
  List wanted = params, wanted_buffers = buffers;
  scalar::Half half = some_half(params, rounding), wanted_half = half;
  auto steps = first_steps(sizes.size()), wanted_steps = steps;
  for (uint32_t turn = 0; turn < 2; ++turn) {
    List grads = random_list(sizes, grad_dtype, 33 + turn);
    poison_frozen(grads, masks);
    List untouched = grads;
    scalar::sgd(wanted, grads, wanted_buffers, wanted_steps, masks, wanted_half, hyper.options,
                hyper.lr, hyper.grad_scale);
    cpu::masked_sgd(dense(params), dense(grads), dense(buffers), pointers(steps), masks.words(), {},
                    half.entry(), hyper.options, hyper.lr, hyper.grad_scale);
    expect_same(grads, untouched, at("masked_sgd's gradients", dtype, sizes.size()));
  }
  expect_same(params, wanted, at("masked_sgd", dtype, sizes.size()));
  expect_same(buffers, wanted_buffers, at("masked_sgd's buffers", dtype, sizes.size()));
  expect_same(half.masters, wanted_half.masters, at("masked_sgd's masters", dtype, sizes.size()));
  expect(steps == wanted_steps, "masked_sgd counts its steps");
}

void check_adam(const std::vector<int64_t>& sizes, Dtype dtype, Dtype grad_dtype, bool amsgrad,
                const Hyper<AdamOptions>& hyper, Rounding rounding = Rounding::nearest) {
  List params = random_list(sizes, dtype, 41);
  List firsts = random_list(sizes, Dtype::f32, 42), seconds = zeros_like(params);
  List largests = amsgrad ? zeros_like(params) : List{};
  Masks masks = step_masks(sizes);
  poison_frozen(params, masks);
  scalar::Half half = some_half(params, rounding), wanted_half = half;
  List wanted = params, wanted_firsts = firsts, wanted_seconds = seconds, wanted_max = largests;
  auto steps = first_steps(sizes.size()), wanted_steps = steps;
  for (uint32_t turn = 0; turn < 2; ++turn) {
    List grads = random_list(sizes, grad_dtype, 43 + turn);
    poison_frozen(grads, masks);
    List untouched = grads;
    scalar::adam(wanted, grads, wanted_firsts, wanted_seconds, wanted_max, wanted_steps, masks,
                 wanted_half, hyper.options, hyper.lr, hyper.grad_scale);
    cpu::masked_adam(dense(params), dense(grads), dense(firsts), dense(seconds), dense(largests),
                     pointers(steps), masks.words(), {}, half.entry(), hyper.options, hyper.lr,
                     hyper.grad_scale);
    expect_same(grads, untouched, at("masked_adam's gradients", dtype, sizes.size()));
  }
  expect_same(params, wanted, at("masked_adam", dtype, sizes.size()));
  expect_same(half.masters, wanted_half.masters, at("masked_adam's masters", dtype, sizes.size()));
  expect_same(firsts, wanted_firsts, at("masked_adam's first moments", dtype, sizes.size()));
  expect_same(seconds, wanted_seconds, at("masked_adam's second moments", dtype, sizes.size()));
  expect_same(largests, wanted_max, at("masked_adam's largest moments", dtype, sizes.size()));
  expect(steps == wanted_steps, "masked_adam counts its steps");
}

// The same steps with compact state end with the same weights, and with that part of the state.
void check_compact_sgd(const std::vector<int64_t>& sizes, Dtype dtype,
                       const Hyper<SgdOptions>& hyper, Rounding rounding) {
  List params = random_list(sizes, dtype, 31), grads = random_list(sizes, Dtype::f32, 33);
  List buffers = random_list(sizes, Dtype::f32, 32);
  Masks masks = step_masks(sizes);
  RankLists ranks(sizes, masks);
  List wanted = params, some = compressed(buffers, masks);
  scalar::Half half = some_half(params, rounding), wanted_half = half;
  auto steps = first_steps(sizes.size()), wanted_steps = steps;
  for (uint32_t turn = 0; turn < 2; ++turn) {
    scalar::sgd(wanted, grads, buffers, wanted_steps, masks, wanted_half, hyper.options, hyper.lr,
                hyper.grad_scale);
    cpu::masked_sgd(dense(params), dense(grads), dense(some), pointers(steps), masks.words(),
                    ranks.pointers, half.entry(), hyper.options, hyper.lr, hyper.grad_scale);
  }
  expect_same(params, wanted, at("compact masked_sgd", dtype, sizes.size()));
  expect_same(some, compressed(buffers, masks), at("compact buffers", dtype, sizes.size()));
}

void check_compact_adam(const std::vector<int64_t>& sizes, Dtype dtype, bool amsgrad,
                        const Hyper<AdamOptions>& hyper, Rounding rounding) {
  List params = random_list(sizes, dtype, 41), grads = random_list(sizes, Dtype::bf16, 43);
  List firsts = random_list(sizes, Dtype::f32, 42), seconds = zeros_like(params);
  List largests = amsgrad ? zeros_like(params) : List{};
  Masks masks = step_masks(sizes);
  RankLists ranks(sizes, masks);
  List wanted = params, some_firsts = compressed(firsts, masks);
  List some_seconds = compressed(seconds, masks), some_largests = compressed(largests, masks);
  scalar::Half half = some_half(params, rounding), wanted_half = half;
  auto steps = first_steps(sizes.size()), wanted_steps = steps;
  for (uint32_t turn = 0; turn < 2; ++turn) {
    scalar::adam(wanted, grads, firsts, seconds, largests, wanted_steps, masks, wanted_half,
                 hyper.options, hyper.lr, hyper.grad_scale);
    cpu::masked_adam(dense(params), dense(grads), dense(some_firsts), dense(some_seconds),
                     dense(some_largests), pointers(steps), masks.words(), ranks.pointers,
                     half.entry(), hyper.options, hyper.lr, hyper.grad_scale);
  }
  std::string what = at("compact masked_adam", dtype, sizes.size());
  expect_same(params, wanted, what);
  expect_same(some_firsts, compressed(firsts, masks), what + "'s first moments");
  expect_same(some_seconds, compressed(seconds, masks), what + "'s second moments");
  expect_same(some_largests, compressed(largests, masks), what + "'s largest moments");
}

// lr, momentum, dampening, weight decay, nesterov, maximize, grad_scale.
const Hyper<SgdOptions> kSgd[] = {{0.1, {0.0, 0.0, 0.0, false, false}, 1.0f},
                                  {0.013, {0.9, 0.0, 5e-4, false, false}, 1.0f},
                                  {0.013, {0.9, 0.3, 5e-2, false, true}, 3.0f},
                                  {0.1, {0.8, 0.0, 1e-2, true, false}, 1024.0f},
                                  {0.1, {0.8, 0.0, 0.0, true, true}, 1.0f}};
// lr, β1, β2, ε, weight decay, decoupled, maximize, grad_scale.
const Hyper<AdamOptions> kAdam[] = {{1e-3, {0.9, 0.999, 1e-8, 0.0, false, false}, 1.0f},
                                    {1e-2, {0.5, 0.9, 1e-3, 0.1, false, true}, 3.0f},
                                    {1e-2, {0.3, 0.9, 1e-3, 0.1, true, false}, 1024.0f}};

// State or ranks of another mask are refused before anything is written.
void check_refused_ranks() {
  List params = random_list({40000}, Dtype::f32, 41), grads = random_list({40000}, Dtype::f32, 43);
  Masks masks = step_masks({40000});
  RankLists ranks({40000}, masks);
  List buffers = compressed(zeros_like(params), masks);
  auto* counts = const_cast<int64_t*>(ranks.pointers[0]);
  auto refused = [&] {
    std::vector<float> steps = {1.0f};
    List before = params;
    try {
      cpu::masked_sgd(dense(params), dense(grads), dense(buffers), pointers(steps), masks.words(),
                      ranks.pointers, {}, kSgd[1].options, 0.1, 1.0f);
    } catch (const std::runtime_error&) {
      expect_same(params, before, "after refused ranks");
      return true;
    }
    return false;
  };
  expect(!refused(), "ranks that fit are taken");
  for (int64_t* number : {&buffers[0].numel, &counts[0], &counts[3], &counts[10]}) {
    *number -= 1;
    expect(refused(), "a number one short is refused");
    *number += 1;
  }
  expect(!refused(), "ranks that fit are taken again");
}

}  // namespace

void accumulate_cases() {
  for (const auto& sizes : kLists)
    for (Dtype dtype : kDtypes)
      for (ScoreRule rule : {ScoreRule::sum, ScoreRule::abs, ScoreRule::square})
        for (bool zero : {false, true}) check_accumulate(sizes, dtype, rule, zero);
}

void step_cases() {
  for (const auto& sizes : kLists) {
    for (const auto& hyper : kSgd)
      for (Dtype dtype : kDtypes) check_sgd(sizes, dtype, dtype, hyper);
    for (const auto& hyper : kAdam)
      for (Dtype dtype : kDtypes)
        for (bool amsgrad : {false, true}) check_adam(sizes, dtype, dtype, amsgrad, hyper);
  }
  for (Rounding rounding : {Rounding::master, Rounding::stochastic}) {
    check_sgd(kSizes, Dtype::bf16, Dtype::f32, kSgd[2], rounding);
    check_adam(kSizes, Dtype::bf16, Dtype::bf16, true, kAdam[1], rounding);
  }
  for (const auto& sizes : kLists) {
    check_compact_sgd(sizes, Dtype::f32, kSgd[2], Rounding::nearest);
    check_compact_adam(sizes, Dtype::f32, false, kAdam[2], Rounding::nearest);
  }
  for (Rounding rounding : {Rounding::nearest, Rounding::master, Rounding::stochastic}) {
    check_compact_sgd(kSizes, Dtype::bf16, kSgd[3], rounding);
    check_compact_adam(kSizes, Dtype::bf16, true, kAdam[1], rounding);
  }
  check_refused_ranks();
  check_sgd(kSizes, Dtype::f16, Dtype::f16, kSgd[3], Rounding::master);
  check_sgd(kSizes, Dtype::f32, Dtype::bf16, kSgd[1]);
  check_adam(kSizes, Dtype::bf16, Dtype::f32, false, kAdam[2]);
}

void soft_threshold_cases() {
  for (const auto& sizes : kLists)
    for (Dtype dtype : kDtypes) {
      List start = random_list(sizes, dtype, 51), anchors = random_list(sizes, dtype, 52);
      for (int64_t k : some_k(numel_of(start))) {
        List params = start, wanted = start, fixed = anchors;
        float tau = scalar::soft_threshold(wanted, anchors, k);
        std::string what = at("soft_threshold", dtype, sizes.size()) + ", k " + std::to_string(k);
        expect(same(cpu::soft_threshold(dense(params), dense(anchors), k), tau), what + ": τ");
        expect_same(params, wanted, what);
        expect_same(anchors, fixed, what + ": anchors");
      }
    }
}
