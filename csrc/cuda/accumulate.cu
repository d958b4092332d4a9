#include "cuda/group.cuh"
#include "formats.h"
#include "rules/score.h"

namespace salun::cuda {
namespace {

struct ScoreSlot {
  float* score;
  void* grad;
  int64_t numel;
};

__device__ __forceinline__ float score_of(ScoreRule rule, float g) {
  if (rule == ScoreRule::sum) return score_sum(g);
  return rule == ScoreRule::abs ? score_abs(g) : score_square(g);
}

// Reads both, writes the score (and zeros): 12 bytes a weight in fp32.
template <class Format>
__global__ void __launch_bounds__(kBlock)
    accumulate_kernel(Table<ScoreSlot> table, ScoreRule rule, bool zero_grads) {
  using Raw = typename Format::Raw;
  for_each_chunk(table, [&](const Chunk& chunk) {
    const ScoreSlot slot = table.slots[chunk.slot];
    for_each_group(chunk, [&](int64_t at, int count) {
      float score[kGroup], g[kGroup];
      load_group(slot.score + at, count, score);
      load_values<Format>(slot.grad, at, count, g);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) score[i] += score_of(rule, g[i]);
      store_group(slot.score + at, count, score);
      const Raw zeros[kGroup] = {};
      if (zero_grads) store_group(static_cast<Raw*>(slot.grad) + at, count, zeros);
    });
  });
}

}  // namespace

void accumulate(Workspace& workspace, std::span<const Dense> scores, std::span<const Dense> grads,
                ScoreRule rule, bool zero_grads) {
  for (Dtype dtype : kDtypes) {
    std::vector<ScoreSlot> slots;
    for (size_t i = 0; i < scores.size(); ++i)
      if (grads[i].dtype == dtype && grads[i].numel > 0)
        slots.push_back({static_cast<float*>(scores[i].data), grads[i].data, grads[i].numel});
    if (slots.empty()) continue;
    auto table = upload(workspace, slots);
    with_format(dtype, [&](auto format) {
      LAUNCH((accumulate_kernel<decltype(format)>), grid_for(table.chunks), kBlock,
             stream_of(workspace), table, rule, zero_grads);
    });
  }
}

}  // namespace salun::cuda
