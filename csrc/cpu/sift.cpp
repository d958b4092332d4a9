#include "cpu/sift.h"

#include <atomic>

#include "cpu/masks.h"
#include "cpu/pack.h"

namespace salun::cpu {
namespace {

struct Totals {
  std::atomic<int64_t> reached{0}, at_high{0}, at_low{0}, stored{0};
  std::atomic<bool> nonfinite{false}, overflow{false};

  // Returns where the chunk's candidates go.
  int64_t add(const Census& census) {
    reached += census.reached;
    at_high += census.at_high;
    at_low += census.at_low;
    if (census.nonfinite) nonfinite = true;
    return stored.fetch_add(census.inside);
  }
};

// Bits of a chunk's candidates: those above the threshold, and the first `ties` that equal it.
void set_candidates(const Sifted& sifted, int64_t chunk, uint32_t threshold, int64_t ties,
                    uint32_t* words) {
  std::span<const uint32_t> keys = sifted.keys_of(chunk);
  std::span<const uint16_t> places = sifted.places_of(chunk);
  for (size_t i = 0; i < keys.size(); ++i) {
    bool tied = keys[i] == threshold;
    auto chosen = uint32_t((keys[i] > threshold) | (tied & (ties > 0)));  // no branch to guess
    ties -= tied;
    words[places[i] / kWordBits] |= chosen << places[i] % kWordBits;
  }
}

std::vector<int64_t> ties_per_chunk(const Sifted& sifted, uint32_t threshold) {
  auto size = int64_t(sifted.chunks.size());
  std::vector<int64_t> ties(sifted.chunks.size());
  for (int64_t c = 0; c < size; ++c) {
    if (threshold == sifted.bracket.high)
      ties[c] = sifted.chunks[c].at_high;
    else if (threshold == sifted.bracket.low)
      ties[c] = sifted.chunks[c].at_low;
    else
      ties[c] = std::ranges::count(sifted.keys_of(c), threshold);
  }
  return ties;
}

}  // namespace

Sifted sift(const Source& source, Guess guess, bool largest, std::span<const Words> masks) {
  Bracket bracket = guess.bracket;
  Sifted sifted{bracket, {}, false, {}, {}, {}};
  sifted.chunks.resize(size_t(source.plan().size()));
  sifted.keys = std::make_unique_for_overwrite<uint32_t[]>(size_t(guess.room));
  sifted.places = std::make_unique_for_overwrite<uint16_t[]>(size_t(guess.room));
  Totals totals;
  source.plan().for_each([&](const Chunk& c) {
    if (totals.overflow.load(std::memory_order_relaxed)) return;
    float tile[kChunk];
    Candidates inside;
    inside.size = 0;
    Census census{};
    uint32_t* words = masks.empty() ? nullptr : words_at(masks[c.tensor], c.begin);
    loops().sift(source.view(c, tile), c.count, bracket, largest, words, &inside, &census);
    if (bracket.low == bracket.high) census.at_low = 0;
    census.inside = inside.size;
    int64_t first = totals.add(census);
    if (first + inside.size > guess.room) {
      totals.overflow = true;
      return;
    }
    sifted.chunks[c.index] = {first, int32_t(inside.size), int32_t(census.at_high),
                              int32_t(census.at_low)};
    std::copy_n(inside.keys, inside.size, sifted.keys.get() + first);
    std::copy_n(inside.places, inside.size, sifted.places.get() + first);
  });
  sifted.census = {totals.reached, totals.at_high, totals.stored, totals.at_low, totals.nonfinite};
  sifted.overflow = totals.overflow;
  return sifted;
}

// Walks down the bracket: above | at high | inside | at low.
std::optional<Threshold> kth_of(const Sifted& sifted, int64_t k) {
  const auto& [reached, at_high, inside, at_low, nonfinite] = sifted.census;
  const auto& [low, high, ends] = sifted.bracket;
  int64_t rank = k - (reached - at_high);  // 1-based, among the keys from `high` down
  if (sifted.overflow || rank <= 0) return std::nullopt;
  if (rank <= at_high) return Threshold{high, rank};
  rank -= at_high;
  if (rank <= inside) return kth_largest({sifted.keys.get(), size_t(inside)}, low, high, rank);
  rank -= inside;
  if (rank <= at_low) return Threshold{low, rank};
  return std::nullopt;
}

// A chunk is read again only where ties at an end of the bracket leave its words wrong.
void complete_masks(const Source& source, const Sifted& sifted, Threshold threshold, bool largest,
                    std::span<const Words> masks) {
  uint32_t key = threshold.key;
  std::vector<int64_t> ties = ties_per_chunk(sifted, key);
  std::vector<int64_t> taken = first_come(ties, threshold.ties);
  source.plan().for_each([&](const Chunk& c) {
    uint32_t* words = words_at(masks[c.tensor], c.begin);
    int64_t mine = taken[c.index];
    bool surplus = key == sifted.bracket.high && mine < ties[c.index];
    bool missing = key == sifted.bracket.low && key != sifted.bracket.high && mine > 0;
    if (surplus || missing)
      pack_chunk(source, c, {key, mine}, largest, words);
    else if (key != sifted.bracket.high)
      set_candidates(sifted, c.index, key, mine, words);
  });
}

}  // namespace salun::cpu
