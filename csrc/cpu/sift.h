// One pass over all scores against a bracket: what lies where is counted, what lies inside is kept,
// and mask words are written as if the bracket's upper end were the threshold.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "cpu/bracket.h"
#include "cpu/kth.h"

namespace salun::cpu {

struct Sifted {
  struct InChunk {
    int64_t first;  // of its candidates
    int32_t inside, at_high, at_low;
  };

  Bracket bracket;
  Census census;  // of all
  bool overflow;  // more inside than there was room for: the rest of this means nothing
  std::vector<InChunk> chunks;
  std::unique_ptr<uint32_t[]> keys;    // [room], of the candidates, chunk by chunk
  std::unique_ptr<uint16_t[]> places;  // [room], within their chunk

  std::span<const uint32_t> keys_of(int64_t chunk) const {
    return {keys.get() + chunks[chunk].first, size_t(chunks[chunk].inside)};
  }
  std::span<const uint16_t> places_of(int64_t chunk) const {
    return {places.get() + chunks[chunk].first, size_t(chunks[chunk].inside)};
  }
};

// Without masks, none are written.
Sifted sift(const Source& source, Guess guess, bool largest, std::span<const Words> masks);

// The k-th key, unless it lies beyond the bracket or the candidates overflowed.
std::optional<Threshold> kth_of(const Sifted& sifted, int64_t k);

// Turns the words of that pass into the masks of a threshold within its bracket.
void complete_masks(const Source& source, const Sifted& sifted, Threshold threshold, bool largest,
                    std::span<const Words> masks);

}  // namespace salun::cpu
