// Where the state of a parameter lies, and that compact state is what its ranks say.
#pragma once
#include "cpu/parallel.h"
#include "ops.h"
#include "rules/bits.h"

namespace salun::cpu {

inline const int64_t* ranks_of(Ranks ranks, int64_t tensor) {
  return ranks.empty() ? nullptr : ranks[size_t(tensor)];
}

inline float* state_at(const Dense& state, const int64_t* ranks, const Chunk& c) {
  static_assert(kChunk % kRankRun == 0);
  return static_cast<float*>(state.at(ranks ? ranks[c.begin / kRankRun] : c.begin));
}

// Throws std::runtime_error unless ranks count the bits of their masks and each list of states has
// as many elements: the loops take it on trust. Reads the masks once.
void require_ranks(std::span<const Dense> params, std::span<const Words> masks, Ranks ranks,
                   std::initializer_list<std::span<const Dense>> states);

}  // namespace salun::cpu
