// What both masked steps do with a chunk, tile by tile.
#pragma once
#include "cpu/loops/compact.h"

namespace salun::cpu {
namespace {

// Calls update(g, p, at, words, count) with fp32 gradients and weights, to be updated in place with
// the state from its element `at` on.
template <class Step, class Update>
void step_tiles(const Weights& weights, const void* grad, Dtype grad_dtype, const uint32_t* words,
                int64_t n, const Step& step, Update update) {
  float g_tile[kTile], p_tile[kTile];
  int64_t used = 0;  // of compact state
  for (int64_t at = 0; at < n; at += kTile) {
    int64_t count = n - at < kTile ? n - at : kTile;
    const uint32_t* tile_words = words ? words + at / kWordBits : nullptr;
    float* p = open_weights(weights, at, count, p_tile);
    const float* g = load_gradient(advance(grad, grad_dtype, at), grad_dtype, count, step.maximize,
                                   step.grad_scale, g_tile);
    if (step.compact)
      used += update_selected(
          g, p, tile_words, count,
          [&](const float* gs, float* ps, int64_t some) { update(gs, ps, used, nullptr, some); });
    else
      update(g, p, at, tile_words, count);
    close_weights(weights, at, p, tile_words, count);
  }
}

}  // namespace
}  // namespace salun::cpu
