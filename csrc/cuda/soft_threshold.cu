// θ = |Δ| > τ ? θ_ref + sign(Δ)(|Δ| - τ) : θ_ref to the byte; 12 bytes a weight in fp32.
#include <limits>

#include "cuda/threshold.cuh"

namespace salun::cuda {
namespace {

template <class Format>
__device__ __forceinline__ void shrink_group(const DeltaSlot& slot, int64_t at, int count,
                                             float tau) {
  using Raw = typename Format::Raw;
  auto* memory = static_cast<Raw*>(slot.param) + at;
  Raw param[kGroup], anchor[kGroup];
  load_group(memory, count, param);
  load_group(static_cast<const Raw*>(slot.anchor) + at, count, anchor);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const float reference = Format::decode(anchor[i]);
    const float delta = soft_delta(Format::decode(param[i]), reference);
    const Raw moved = Format::encode(soft_shrunk(delta, reference, tau));
    param[i] = magnitude(delta) > tau ? moved : anchor[i];
  }
  store_group(memory, count, param);
}

__global__ void __launch_bounds__(kBlock)
    shrink(Table<DeltaSlot> table, const Selection* selection, const float* tau) {
  if (selection->nonfinite != 0) return;
  const float by = *tau;
  for_each_chunk(table, [&](const Chunk& chunk) {
    const DeltaSlot& slot = table.slots[chunk.slot];
    with_format(slot.dtype, [&](auto format) {
      for_each_group(chunk, [&](int64_t at, int count) {
        shrink_group<decltype(format)>(slot, at, count, by);
      });
    });
  });
}

}  // namespace

void soft_threshold(Workspace& workspace, std::span<const Dense> params,
                    std::span<const Dense> anchors, int64_t k, float* tau) {
  if (k == 0) return store(workspace, tau, -std::numeric_limits<float>::infinity());
  std::vector<DeltaSlot> slots;
  for (size_t i = 0; i < params.size(); ++i)
    slots.push_back({params[i].data, anchors[i].data, params[i].numel, params[i].dtype});
  auto table = upload(workspace, slots);
  auto* selection = scratch<Selection>(workspace, 1);
  find_threshold(workspace, table, k, false, selection, tau);
  LAUNCH(shrink, grid_for(table.chunks), kBlock, stream_of(workspace), table, selection, tau);
  refuse_nonfinite(workspace, selection);
}

}  // namespace salun::cuda
