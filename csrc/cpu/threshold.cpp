// Selection without sorting or concatenating: a sample brackets the k-th key, one pass over all
// scores counts what lies above and keeps what lies inside (about 1 %), and the k-th is found among
// those. Where the bracket misses twice, three histograms of digits decide.
#include "cpu/threshold.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "cpu/digits.h"

namespace salun::cpu {
namespace {

constexpr int64_t kWorthSampling = 1 << 21;  // scores; below, three histograms are as fast

}  // namespace

void refuse_nonfinite(const Source& source) {
  std::atomic<int64_t> found{-1};
  source.plan().for_each([&](const Chunk& c) {
    float tile[kChunk];
    if (loops().any_nonfinite(source.view(c, tile), c.count)) found = c.tensor;
  });
  if (found >= 0)
    throw std::runtime_error("tensor " + std::to_string(found) +
                             " of the list holds NaN or infinity");
}

Found find_threshold(const Source& source, int64_t k, bool largest, bool allow_nonfinite,
                     std::span<const Words> masks) {
  bool checked = allow_nonfinite;
  int guesses = source.plan().origins().back() < kWorthSampling ? 0 : kGuesses;
  for (int attempt = 0; attempt < guesses; ++attempt) {
    Sifted sifted = sift(source, guess_bracket(source, k, largest, attempt), largest, masks);
    if (!checked && (sifted.census.nonfinite || sifted.overflow)) refuse_nonfinite(source);
    checked = true;
    if (std::optional<Threshold> kth = kth_of(sifted, k)) return {*kth, std::move(sifted)};
  }
  if (!checked) refuse_nonfinite(source);
  return {kth_by_digits(source, k, largest), std::nullopt};
}

}  // namespace salun::cpu
