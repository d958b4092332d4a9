// Faults on the caller's side, one per kind of report: they show that a build would notice them.
#include "cases.h"
#include "cpu/parallel.h"
#include "scores.h"

namespace {

using namespace salun;

// A gradient one element shorter than its scores: a read past the end.
void plant_short_gradient() {
  List scores = random_list({1000}, Dtype::f32, 1), grads = random_list({999}, Dtype::f32, 2);
  cpu::accumulate(dense(scores), dense(grads), ScoreRule::sum, false);
}

// A parameter one element shorter than the list says: a write past the end.
void plant_short_parameter() {
  List params = random_list({999}, Dtype::f32, 1), grads = random_list({1000}, Dtype::f32, 2);
  std::vector<Dense> claimed = {{params[0].data(), 1000, Dtype::f32}};
  std::vector<float> steps = {0.0f};
  Masks none({0});
  none.present[0] = false;
  cpu::masked_sgd(
      claimed, dense(grads), {}, pointers(steps), none.words(), {}, {},
      {.momentum = 0, .dampening = 0, .weight_decay = 0, .nesterov = false, .maximize = false}, 0.1,
      1.0f);
}

// Compact state one element shorter than the list says, and than its mask has ones.
void plant_short_state() {
  List params = random_list({1000}, Dtype::f32, 1), grads = random_list({1000}, Dtype::f32, 2);
  List state = random_list({999}, Dtype::f32, 3);
  std::vector<Dense> claimed = {{state[0].data(), 1000, Dtype::f32}};
  std::vector<float> steps = {0.0f};
  std::vector<int64_t> ranks = {0, 1000};
  std::vector<const int64_t*> pointer = {ranks.data()};
  Masks all({1000}, 0xFF);
  cpu::masked_sgd(
      dense(params), dense(grads), claimed, pointers(steps), all.words(), pointer, {},
      {.momentum = 0.9, .dampening = 0, .weight_decay = 0, .nesterov = false, .maximize = false},
      0.1, 1.0f);
}

// Masks one word too short for their scores.
void plant_short_words() {
  Scores scores = flat_scores(random_list({1025}, Dtype::f32, 1));
  Masks masks({1024});
  cpu::select(scores.spans(), 500, true, false, masks.words());
}

// fp32 scores two bytes off their alignment: undefined, and fatal on some machines.
void plant_misaligned() {
  Block block(4002);
  List grads = random_list({1000}, Dtype::f32, 2);
  std::vector<Dense> scores = {{block.data() + 2, 1000, Dtype::f32}};
  cpu::accumulate(scores, dense(grads), ScoreRule::sum, false);
}

// Threads that share chunks: what parallel_for must never do.
void plant_overlapping_threads() {
  threads_overlap = true;
  List scores = random_list({200000}, Dtype::f32, 1), grads = random_list({200000}, Dtype::f32, 2);
  cpu::accumulate(dense(scores), dense(grads), ScoreRule::sum, false);
}

// A total counted without an atomic, as a census might.
void plant_unguarded_count() {
  int64_t total = 0;
  std::vector<int64_t> sizes = {400000};
  List list = random_list(sizes, Dtype::f32, 1);
  cpu::ChunkPlan(dense(list)).for_each([&](const cpu::Chunk& c) { total += c.count; });
  std::printf("%lld\n", static_cast<long long>(total));
}

// A result that is one bit off: the comparison itself.
void plant_wrong_bit() {
  List found = random_list({1000}, Dtype::f32, 1), wanted = found;
  found[0].block.data()[3999] ^= 1;
  expect_same(found, wanted, "planted");
}

struct Plant {
  const char* name;
  void (*run)();
} const kPlants[] = {
    {"short-gradient", plant_short_gradient},   {"short-parameter", plant_short_parameter},
    {"short-state", plant_short_state},         {"short-words", plant_short_words},
    {"misaligned", plant_misaligned},           {"overlapping-threads", plant_overlapping_threads},
    {"unguarded-count", plant_unguarded_count}, {"wrong-bit", plant_wrong_bit}};

}  // namespace

bool run_fault(const std::string& name) {
  for (const Plant& plant : kPlants)
    if (name == plant.name) return plant.run(), true;
  return false;
}
