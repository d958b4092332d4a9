#include "cpu/bracket.h"

#include <cmath>

#include "cpu/kth.h"
#include "rules/ordered_key.h"

namespace salun::cpu {
namespace {

constexpr int64_t kStrata = 65536, kSamples = 2 * kStrata;
constexpr int64_t kBatch = 64;       // samples whose reads overlap
constexpr double kDeviations = 3.6;  // of the sampled rank, on either side
constexpr int64_t kFew = 8;          // samples more, where the rank itself is that of a few

// In [0, 1), well mixed (the finaliser of MurmurHash3).
double uniform(uint64_t counter) {
  uint64_t x = counter * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 33) * 0xFF51AFD7ED558CCDull;
  x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53ull;
  return double((x ^ x >> 33) >> 11) * 0x1p-53;
}

// The list as one line, cut into strata of equal length: two neighbours at a random place of each,
// for the cost of one line of memory.
class Sample {
 public:
  Sample(const Source& source, bool largest, int attempt)
      : source_(source), largest_(largest), attempt_(attempt), origins_(source.plan().origins()) {
    parallel_for(
        kStrata / kBatch, 8,
        [](void* sample, int64_t begin, int64_t end) {
          for (int64_t batch = begin; batch < end; ++batch)
            static_cast<Sample*>(sample)->draw(batch * kBatch);
        },
        this);
  }

  int64_t total() const { return origins_.back(); }
  std::span<const uint32_t> keys() const { return keys_; }

 private:
  struct Place {
    int64_t tensor, index, neighbour;
  };

  // All places of a batch are known before the first is read, so that the reads overlap.
  void draw(int64_t first) {
    Place places[kBatch];
    for (int64_t i = 0; i < kBatch; ++i) {
      places[i] = place_in(first + i);
      source_.prefetch(places[i].tensor, places[i].index);
    }
    for (int64_t i = 0; i < kBatch; ++i) {
      keys_[2 * (first + i)] = key_of(places[i].tensor, places[i].index);
      keys_[2 * (first + i) + 1] = key_of(places[i].tensor, places[i].neighbour);
    }
  }

  Place place_in(int64_t stratum) const {
    double within = uniform(uint64_t(attempt_ * kStrata + stratum + 1));
    double flat = (double(stratum) + within) * (double(total()) / double(kStrata));
    int64_t place = std::min(int64_t(flat), total() - 1);
    int64_t tensor = owner_of(origins_.data(), int64_t(origins_.size()) - 1, place);
    int64_t index = place - origins_[tensor], neighbour = index ^ 1;
    return {tensor, index, place - index + neighbour < origins_[tensor + 1] ? neighbour : index};
  }

  uint32_t key_of(int64_t tensor, int64_t index) const {
    float value = source_.value(tensor, index);
    return largest_ ? ordered_key<true>(value) : ordered_key<false>(value);
  }

  const Source& source_;
  bool largest_;
  int attempt_;
  std::vector<int64_t> origins_;
  std::vector<uint32_t> keys_ = std::vector<uint32_t>(kSamples);
};

// Keys that a sample holds more often are counted by themselves: collected, they might be too many.
bool is_heavy(std::span<const uint32_t> sample, uint32_t key) {
  return std::ranges::count(sample, key) > kFew;
}

// Light ends belong inside: then nothing at all is expected at the ends, and nothing is counted.
Bracket bracket_around(uint32_t low, uint32_t high, std::span<const uint32_t> sample) {
  if (low == 0 || is_heavy(sample, low) || is_heavy(sample, high)) return {low, high, true};
  return {low - 1, high + 1, false};
}

}  // namespace

Guess guess_bracket(const Source& source, int64_t k, bool largest, int attempt) {
  Sample sample(source, largest, attempt);
  double n = double(kSamples), total = double(sample.total()), fraction = double(k) / total;
  double deviation = std::sqrt(n * fraction * (1 - fraction));
  double margin = (attempt + 1) * (kDeviations * deviation + kFew);
  auto key_at = [&](double rank) {
    if (rank < 1) return kKeyMax + 1;
    if (rank > n) return uint32_t(0);
    return kth_largest(sample.keys(), 0, kKeyMax, int64_t(rank)).key;
  };
  uint32_t high = key_at(n * fraction - margin), low = key_at(n * fraction + margin + 1);
  return {bracket_around(low, high, sample.keys()), int64_t(2 * (2 * margin + 2) * total / n)};
}

}  // namespace salun::cpu
