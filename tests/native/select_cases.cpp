// select by histograms, by counting and by sampling, on scores of any strides.
#include <functional>
#include <stdexcept>

#include "cases.h"
#include "cpu/sift.h"
#include "rules/ordered_key.h"
#include "scores.h"

namespace {

using namespace salun;

// 0-dim, transposed, gaps, an expanded row, and a permutation that crosses a chunk.
Scores strided_scores(Dtype dtype) {
  Scores scores;
  auto add = [&](int64_t elements, std::vector<int64_t> shape, std::vector<int64_t> steps,
                 bool plain) {
    scores.add(std::move(random_list({elements}, dtype, 3 + uint32_t(elements))[0]), shape, steps,
               plain);
  };
  add(1, {}, {}, true);
  add(0, {3, 0, 2}, {2, 2, 1}, true);
  add(7 * 33, {7, 33}, {1, 7}, false);
  add(66 * 5 - 1, {5, 3, 11}, {66, 22, 2}, false);
  add(600, {4, 600}, {0, 1}, false);
  add(41 * 3 * 200, {41, 3, 200}, {1, 41 * 200, 41}, false);
  return scores;
}

Masks masks_of(const scalar::Selection& selection, const std::vector<int64_t>& numels) {
  Masks masks(numels, 0);
  size_t flat = 0;
  for (size_t t = 0; t < numels.size(); ++t)
    for (int64_t i = 0; i < numels[t]; ++i)
      if (selection.chosen[flat++]) masks.set(t, i);
  return masks;
}

void check_select(const Scores& scores, int64_t k, bool largest, bool allow_nonfinite,
                  const std::string& what) {
  auto wanted = scalar::select(scores.values(), k, largest);
  Masks masks(scores.numels);
  float threshold = cpu::select(scores.spans(), k, largest, allow_nonfinite, masks.words());
  std::string where = what + ", k " + std::to_string(k) + (largest ? " largest" : " smallest");
  expect_same(masks, masks_of(wanted, scores.numels), where);
  expect(same(threshold, wanted.threshold), where + ": threshold");
}

// The counting form as several processes would use it: three histograms, then pack.
void check_counting(const Scores& scores, int64_t k, bool largest, const std::string& what) {
  auto wanted = scalar::select(scores.values(), k, largest);
  std::vector<int64_t> counts(kHistogramBins);
  uint32_t prefix = 0;
  int64_t ties = k;
  for (int level = 0; level < 3; ++level) {
    cpu::select_histogram(scores.spans(), prefix, level, largest, counts);
    uint32_t digit = kHistogramBins - 1;
    while (counts[digit] < ties) ties -= counts[digit--];
    prefix = level == 0 ? digit : prefix << (level == 1 ? 11 : 10) | digit;
  }
  Masks masks(scores.numels);
  cpu::select_pack(scores.spans(), prefix, ties, largest, masks.words());
  expect_same(masks, masks_of(wanted, scores.numels), what + " by counting");
}

void check_all_k(const Scores& scores, const std::string& what) {
  auto n = int64_t(scores.values().size());
  for (int64_t k : some_k(n))
    for (bool largest : {true, false}) {
      check_select(scores, k, largest, false, what);
      if (k > 0) check_counting(scores, k, largest, what);
    }
}

void check_nonfinite() {
  List list = random_list({0, 40, 17000, 3}, Dtype::f32, 9);
  list[2].set(16500, std::numeric_limits<float>::infinity());
  list[2].set(3, std::numeric_limits<float>::quiet_NaN());
  Scores scores = flat_scores(std::move(list));
  for (int64_t k : {int64_t(0), int64_t(5), int64_t(17042), int64_t(17043)})
    for (bool largest : {true, false}) {
      check_select(scores, k, largest, true, "select among NaN and infinity");
      Masks masks(scores.numels);
      std::string message;
      try {
        cpu::select(scores.spans(), k, largest, false, masks.words());
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      expect(message.find("tensor 2 ") != std::string::npos, "NaN is refused by position");
    }
}

// --- select by sampling: above 2^21 scores ---

const std::vector<int64_t> kManySizes = {0, 1048577, 33, 16384 * 64, 0, 31};

Scores many_scores(const std::function<float(std::mt19937&)>& draw) {
  std::mt19937 random(11);
  List list;
  for (int64_t size : kManySizes) {
    list.emplace_back(Dtype::f32, size);
    for (int64_t i = 0; i < size; ++i) list.back().set(i, draw(random));
  }
  return flat_scores(std::move(list));
}

// Even in ±2.147: the median magnitude is 1.0737.
float spread(std::mt19937& random) { return float(int32_t(random())) / 1e9f; }

// A random number in [0, 1) as bracket.cpp draws it.
double drawn(uint64_t counter) {
  uint64_t x = counter * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 33) * 0xFF51AFD7ED558CCDull;
  x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53ull;
  return double((x ^ x >> 33) >> 11) * 0x1p-53;
}

// The places that the first `misled` samples look at hold other values than the rest, so that the
// brackets mislead: the exact answer must not depend on the sample.
Scores decoys(float beside, float width, int misled) {
  Scores scores = many_scores([&](std::mt19937& r) { return beside + width * spread(r); });
  List& list = scores.memory;
  int64_t total = numel_of(list), strata = 65536;
  std::mt19937 random(12);
  for (int64_t s = 0; s < misled * strata; ++s) {
    double flat = (double(s % strata) + drawn(uint64_t(s + 1))) * double(total) / double(strata);
    auto place = int64_t(flat);
    size_t tensor = 0;
    while (place >= list[tensor].numel) place -= list[tensor++].numel;
    list[tensor].set(place, spread(random));
    if ((place ^ 1) < list[tensor].numel) list[tensor].set(place ^ 1, spread(random));
  }
  return scores;
}

// Which guess, counted from 0, brackets the k-th key; cpu::kGuesses where none does.
int first_right_guess(const Scores& scores, int64_t k, bool largest) {
  std::vector<Strided> spans = scores.spans();
  cpu::ScoreSource source(spans);
  int attempt = 0;
  while (attempt < cpu::kGuesses &&
         !kth_of(sift(source, guess_bracket(source, k, largest, attempt), largest, {}), k))
    ++attempt;
  return attempt;
}

// Of n scores, the n / part-th.
void check_decoys(float beside, int misled, int64_t part, const std::string& what) {
  Scores scores = decoys(beside, 1e-4f, misled);
  int64_t k = numel_of(scores.memory) / part;
  for (bool largest : {true, false}) {
    expect(first_right_guess(scores, k, largest) == misled, what + " is what it says");
    check_select(scores, k, largest, false, what);
  }
}

// Exact, and in one pass: neither ties nor NaN may send the selection to a second guess.
void check_one_pass(const Scores& scores, int64_t k, bool largest, const std::string& what) {
  expect(first_right_guess(scores, k, largest) == 0, what + " in one pass");
  check_select(scores, k, largest, true, what);
}

}  // namespace

void select_cases() {
  for (const auto& sizes : kLists)
    for (Dtype dtype : kDtypes)
      check_all_k(flat_scores(random_list(sizes, dtype, 4)), at("select", dtype, sizes.size()));
  for (Dtype dtype : kDtypes) check_all_k(strided_scores(dtype), at("strided select", dtype, 6));
  List equal = random_list(kSizes, Dtype::f32, 5);
  for (Tensor& tensor : equal)
    for (int64_t i = 0; i < tensor.numel; ++i) tensor.set(i, i % 2 ? 0.25f : -0.25f);
  check_all_k(flat_scores(equal), "select among equals");
  check_nonfinite();
  // Long enough that the histograms, which work in coarse parts, are shared among threads too.
  Scores longer = flat_scores(random_list({400000, 0, 300001}, Dtype::f32, 6));
  check_select(longer, 350000, true, false, "select by shared histograms");
  check_counting(longer, 350000, true, "select by shared histograms");
}

void sampling_cases(bool briefly) {
  auto n = std::accumulate(kManySizes.begin(), kManySizes.end(), int64_t(0));
  Scores scores = many_scores(spread);
  check_select(scores, n / 2, true, false, "select by sampling");
  if (briefly) return;
  for (int64_t k : {int64_t(1), n / 1000, n - 1, n})
    check_one_pass(scores, k, true, "select by sampling");
  check_one_pass(scores, n / 3, false, "select by sampling");
  Scores ties = many_scores([](std::mt19937& r) { return float(r() % 3); });
  for (int64_t k : {n / 6, n / 3, n / 2, n})
    check_one_pass(ties, k, true, "select by sampling among heavy ties");
  Scores spike = many_scores([](std::mt19937& r) { return r() % 10 ? spread(r) : 1.0f; });
  check_one_pass(spike, n / 2, true, "select by sampling with a spike of ties");
  float nan = std::numeric_limits<float>::quiet_NaN();
  Scores holes = many_scores([&](std::mt19937& r) { return r() % 10 ? spread(r) : nan; });
  for (bool largest : {true, false})
    check_one_pass(holes, n / 2, largest, "select by sampling among NaN");
  check_one_pass(holes, n - 1, true, "select by sampling down to NaN");
  for (int misled : {1, 2}) {
    check_decoys(1.0737f, misled, 2, "select with a bracket that overflows");
    check_decoys(2.1302f, misled, 128, "select with a bracket that overflows near its end");
    check_decoys(5.0f, misled, 2, "select with a bracket that misses");
  }
}
