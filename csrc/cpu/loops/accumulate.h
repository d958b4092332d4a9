// score += rule(g): reads both, writes the score (and zeros), 12 bytes a weight in fp32.
#pragma once
#include "cpu/loops/tile.h"
#include "rules/score.h"

namespace salun::cpu {
namespace {

template <class Rule>
void add_scores(float* __restrict score, const float* __restrict g, int64_t n, Rule rule) {
  for (int64_t i = 0; i < n; ++i) score[i] += rule(g[i]);
}

void accumulate(float* score, void* grad, Dtype dtype, ScoreRule rule, bool zero, int64_t n) {
  float tile[kTile];
  for (int64_t at = 0; at < n; at += kTile) {
    int64_t count = n - at < kTile ? n - at : kTile;
    void* g_data = advance(grad, dtype, at);
    const float* g = load(g_data, dtype, count, tile);
    switch (rule) {
      case ScoreRule::sum:
        add_scores(score + at, g, count, [](float x) { return score_sum(x); });
        break;
      case ScoreRule::abs:
        add_scores(score + at, g, count, [](float x) { return score_abs(x); });
        break;
      case ScoreRule::square:
        add_scores(score + at, g, count, [](float x) { return score_square(x); });
        break;
    }
    if (zero) __builtin_memset(g_data, 0, size_t(count * size_of(dtype)));
  }
}

}  // namespace
}  // namespace salun::cpu
