#include "cpu/ranks.h"

#include <atomic>
#include <stdexcept>

#include "cpu/loops/loops.h"
#include "cpu/masks.h"

namespace salun::cpu {
namespace {

// Of the runs of one chunk.
bool counts_bits(const int64_t* ranks, const Words& mask, const Chunk& c) {
  for (int64_t at = c.begin; at < c.begin + c.count; at += kRankRun) {
    int64_t n = std::min(kRankRun, c.begin + c.count - at), run = at / kRankRun;
    if (ranks[run + 1] - ranks[run] != loops().count_ones(words_at(mask, at), n)) return false;
  }
  return true;
}

bool ends_fit(const int64_t* ranks, const Dense& param, size_t tensor,
              std::initializer_list<std::span<const Dense>> states) {
  if (ranks[0] != 0) return false;
  int64_t ones = ranks[rank_count(param.numel) - 1];
  for (auto list : states)
    if (!list.empty() && list[tensor].numel != ones) return false;
  return true;
}

}  // namespace

void require_ranks(std::span<const Dense> params, std::span<const Words> masks, Ranks ranks,
                   std::initializer_list<std::span<const Dense>> states) {
  if (ranks.empty()) return;
  std::atomic<bool> fit = true;
  for (size_t t = 0; t < params.size(); ++t)
    if (ranks[t] && !ends_fit(ranks[t], params[t], t, states)) fit = false;
  ChunkPlan(params).for_each([&](const Chunk& c) {
    const int64_t* mine = ranks[size_t(c.tensor)];
    if (mine && !counts_bits(mine, masks[c.tensor], c)) fit = false;
  });
  if (!fit)
    throw std::runtime_error(
        "salun_fast: ranks: they do not count the bits of the masks, "
        "or compact state has another size");
}

}  // namespace salun::cpu
