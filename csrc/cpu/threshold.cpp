// Selection without sorting or concatenating: a sample brackets the k-th key, one census over all
// scores counts what lies above and keeps what lies inside (about 1 %), and the k-th is found among
// those. Where the bracket misses or overflows (heavy ties), three histograms of digits decide.
#include "cpu/threshold.h"

#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/loops/loops.h"
#include "rules/ordered_key.h"

namespace salun::cpu {
namespace {

constexpr int64_t kSamples = 131072;
constexpr double kDeviations = 3.3;          // of the sampled rank, on either side
constexpr int64_t kWorthSampling = 1 << 21;  // below, three histograms are as fast

int64_t total_of(const ChunkPlan& plan) {
  int64_t total = 0;
  for (int64_t i = 0; i < plan.size(); ++i) total += plan.at(i).count;
  return total;
}

uint32_t key_of(float value, bool largest) {
  return largest ? ordered_key<true>(value) : ordered_key<false>(value);
}

// Keys at pseudo-random places, the same number in every chunk of a stratum: chunks of equal size
// get equal shares, so the sample is stratified over the list.
std::vector<uint32_t> sample_keys(const Source& source, int64_t total, bool largest) {
  const ChunkPlan& plan = source.plan();
  std::vector<std::vector<uint32_t>> per_chunk(plan.size());
  plan.for_each([&](const Chunk& c) {
    int64_t share = std::max<int64_t>(1, kSamples * c.count / total);
    uint64_t state = 0x9E3779B97F4A7C15ull * uint64_t(c.index + 1);
    float staged;
    for (int64_t i = 0; i < share; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      int64_t offset = int64_t((state >> 33) % uint64_t(c.count));
      per_chunk[c.index].push_back(
          key_of(*source.read(c.tensor, c.begin + offset, 1, &staged), largest));
    }
  });
  std::vector<uint32_t> keys;
  for (const auto& part : per_chunk) keys.insert(keys.end(), part.begin(), part.end());
  return keys;
}

// Keys that enclose the k-th largest with high probability.
Bracket bracket_of(std::vector<uint32_t>& sample, double fraction) {
  double n = double(sample.size()), margin = kDeviations * std::sqrt(n * fraction * (1 - fraction));
  auto rank = [&](double place) {  // of the place-th largest
    auto index = int64_t(std::clamp(n - 1 - place, 0.0, n - 1));
    std::nth_element(sample.begin(), sample.begin() + index, sample.end());
    return sample[index];
  };
  uint32_t low = rank(n * fraction + margin + 1), high = rank(n * fraction - margin - 1);
  return {low, high};
}

struct CensusResult {
  Census census{};
  std::unique_ptr<uint32_t[]> inside;  // [census.inside], left untouched where there is none
  bool overflow = false;
};

// The k-th largest of `count` keys in (low, high): one pass fills buckets of equal width, then
// only the bucket that holds it is ordered.
Threshold kth_inside(const uint32_t* keys, int64_t count, Bracket bracket, int64_t k) {
  constexpr int64_t kBuckets = 4096;
  uint64_t width = (uint64_t(bracket.high - bracket.low) + kBuckets - 1) / kBuckets;
  auto bucket_of = [&](uint32_t key) { return int64_t((key - bracket.low) / width); };
  std::vector<int64_t> sizes(kBuckets);
  for (int64_t i = 0; i < count; ++i) ++sizes[bucket_of(keys[i])];
  int64_t bucket = kBuckets - 1;
  while (sizes[bucket] < k) k -= sizes[bucket--];
  std::vector<uint32_t> mine;
  for (int64_t i = 0; i < count; ++i)
    if (bucket_of(keys[i]) == bucket) mine.push_back(keys[i]);
  auto kth = mine.begin() + (k - 1);
  std::nth_element(mine.begin(), kth, mine.end(), std::greater<>());
  uint32_t key = *kth;
  return {key, k - std::count_if(mine.begin(), kth, [&](uint32_t x) { return x > key; })};
}

CensusResult run_census(const Source& source, Bracket bracket, bool largest, int64_t capacity) {
  CensusResult result;
  result.inside = std::make_unique_for_overwrite<uint32_t[]>(capacity);
  std::atomic<int64_t> above{0}, at_high{0}, at_low{0}, stored{0};
  std::atomic<bool> nonfinite{false}, overflow{false};
  source.plan().for_each([&](const Chunk& c) {
    if (overflow.load(std::memory_order_relaxed)) return;
    float tile[kChunk];
    uint32_t candidates[kChunk];
    Census census{};
    const float* values = source.read(c.tensor, c.begin, c.count, tile);
    loops().take_census(values, c.count, bracket, largest, candidates, &census);
    above += census.above;
    at_high += census.at_high;
    at_low += census.at_low;
    if (census.nonfinite) nonfinite = true;
    int64_t at = stored.fetch_add(census.inside);
    if (at + census.inside > capacity)
      overflow = true;
    else
      std::copy_n(candidates, census.inside, result.inside.get() + at);
  });
  result.overflow = overflow;
  result.census = {above, at_high, stored, bracket.low == bracket.high ? 0 : at_low.load(),
                   nonfinite};
  return result;
}

// Walks down the bracket: above | at high | inside | at low. False where the k-th is elsewhere.
bool resolve(const CensusResult& result, Bracket bracket, int64_t k, Threshold* threshold) {
  const Census& census = result.census;
  int64_t rank = k - census.above;  // 1-based, among the keys from `high` down
  if (result.overflow || rank <= 0) return false;
  if (rank <= census.at_high) return *threshold = {bracket.high, rank}, true;
  rank -= census.at_high;
  if (rank <= census.inside) {
    *threshold = kth_inside(result.inside.get(), census.inside, bracket, rank);
    return true;
  }
  rank -= census.inside;
  if (rank <= census.at_low) return *threshold = {bracket.low, rank}, true;
  return false;
}

Threshold threshold_by_digits(const Source& source, int64_t k, bool largest) {
  std::vector<int64_t> counts(kHistogramBins);
  uint32_t prefix = 0;
  for (int level = 0; level < 3; ++level) {
    count_digits(source, prefix, level, largest, counts);
    uint32_t digit = digit_mask(level);
    while (counts[digit] < k) k -= counts[digit--];
    prefix = append_digit(prefix, digit, level);
  }
  return {prefix, k};
}

}  // namespace

void count_digits(const Source& source, uint32_t prefix, int level, bool largest,
                  std::span<int64_t> counts) {
  std::fill(counts.begin(), counts.end(), 0);
  std::mutex merging;
  const ChunkPlan& plan = source.plan();
  // Coarse parts, so that the merge of 2,048 bins is rare beside the counting.
  constexpr int64_t kPart = 16;
  struct Context {
    const Source& source;
    uint32_t prefix;
    int level;
    bool largest;
    std::span<int64_t> counts;
    std::mutex& merging;
  } context{source, prefix, level, largest, counts, merging};
  parallel_for(
      plan.size(), kPart,
      [](void* opaque, int64_t begin, int64_t end) {
        auto& c = *static_cast<Context*>(opaque);
        float tile[kChunk];
        std::vector<int64_t> mine(kHistogramBins);
        for (int64_t i = begin; i < end; ++i) {
          Chunk chunk = c.source.plan().at(i);
          const float* values = c.source.read(chunk.tensor, chunk.begin, chunk.count, tile);
          loops().histogram(values, chunk.count, c.prefix, c.level, c.largest, mine.data());
        }
        std::lock_guard lock(c.merging);
        for (int bin = 0; bin < kHistogramBins; ++bin) c.counts[bin] += mine[bin];
      },
      &context);
}

void refuse_nonfinite(const Source& source) {
  std::atomic<int64_t> found{-1};
  source.plan().for_each([&](const Chunk& c) {
    float tile[kChunk];
    uint32_t candidates[kChunk];
    Census census{};
    const float* values = source.read(c.tensor, c.begin, c.count, tile);
    loops().take_census(values, c.count, {0, 0}, true, candidates, &census);
    if (census.nonfinite) found = c.tensor;
  });
  if (found >= 0)
    throw std::runtime_error("tensor " + std::to_string(found) +
                             " of the list holds NaN or infinity");
}

Threshold find_threshold(const Source& source, int64_t k, bool largest, bool allow_nonfinite) {
  int64_t total = total_of(source.plan());
  if (total < kWorthSampling) {
    if (!allow_nonfinite) refuse_nonfinite(source);
    return threshold_by_digits(source, k, largest);
  }
  std::vector<uint32_t> sample = sample_keys(source, total, largest);
  Bracket bracket = bracket_of(sample, double(k) / double(total));
  sample = {};
  CensusResult result = run_census(source, bracket, largest, total / 100);
  if (!allow_nonfinite && (result.census.nonfinite || result.overflow)) refuse_nonfinite(source);
  Threshold threshold;
  if (resolve(result, bracket, k, &threshold)) return threshold;
  return threshold_by_digits(source, k, largest);
}

}  // namespace salun::cpu
