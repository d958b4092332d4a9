// Three passes find the threshold, a fourth packs the bits.
#include <limits>

#include "cuda/threshold.cuh"
#include "cuda/ties.cuh"

namespace salun::cuda {
namespace {

constexpr int kTurns = int(kChunk / (kBlock * kGroup));

// Which of a group's keys lie above the threshold, and which equal it.
struct GroupBits {
  uint32_t above, equal;
};

__device__ __forceinline__ GroupBits compare(const ScoreSlot& slot, const Chunk& chunk, int offset,
                                             uint32_t threshold, bool largest) {
  GroupBits bits = {0, 0};
  const int count = min(kGroup, chunk.count - offset);
  if (count <= 0) return bits;
  float values[kGroup];
  ranked_values(slot, chunk.begin + offset, count, values);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const uint32_t key = key_of(values[i], largest);
    bits.above |= uint32_t(key > threshold) << i;
    bits.equal |= uint32_t(key == threshold) << i;
  }
  bits.above &= first_bits(count);
  bits.equal &= first_bits(count);
  return bits;
}

// Number of this thread's ties before each of its groups, within the chunk; sets *total.
__device__ __forceinline__ void rank_ties(const GroupBits (&groups)[kTurns],
                                          uint32_t (&rank)[kTurns], uint32_t* total) {
  __shared__ uint32_t warp_ties[kTurns][kWarps];
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const uint32_t below = (1u << lane) - 1;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    // A group has at most eight ties: a ballot for each binary digit of their number adds them up.
    const uint32_t ties = uint32_t(__popc(groups[turn].equal));
    uint32_t before = 0, all = 0;
#pragma unroll
    for (int digit = 0; digit < 4; ++digit) {
      const uint32_t lanes = __ballot_sync(kAllLanes, bit(ties, digit) != 0);
      before += uint32_t(__popc(lanes & below)) << digit;
      all += uint32_t(__popc(lanes)) << digit;
    }
    rank[turn] = before;
    if (lane == 0) warp_ties[turn][warp] = all;
  }
  __syncthreads();
  uint32_t sum = 0;
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn)
    for (int other = 0; other < kWarps; ++other) {
      if (other == warp) rank[turn] += sum;
      sum += warp_ties[turn][other];
    }
  *total = sum;
}

// The first `allowed` bits of `bits`.
__device__ __forceinline__ uint32_t lowest_bits(uint32_t bits, uint64_t allowed) {
  uint32_t kept = 0;
  for (; bits != 0 && allowed > 0; --allowed, bits &= bits - 1) kept |= bits & (0u - bits);
  return kept;
}

// Keeps only the ties that belong to the k.
__device__ __forceinline__ void drop_late_ties(GroupBits (&groups)[kTurns], TieStatus* status,
                                               int64_t chunk, uint64_t wanted) {
  __shared__ uint64_t shared_before;
  uint32_t rank[kTurns], total;
  rank_ties(groups, rank, &total);
  if (threadIdx.x < kWarp) {
    const uint64_t before = ties_before(status, chunk, total);
    if (threadIdx.x == 0) shared_before = before;
  }
  __syncthreads();
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const uint64_t earlier = shared_before + rank[turn];
    groups[turn].equal = lowest_bits(groups[turn].equal, wanted > earlier ? wanted - earlier : 0);
  }
}

// Chunks are handed out by a counter, in order: see ties.cuh.
__device__ __forceinline__ int64_t next_chunk(Selection* selection) {
  __shared__ int64_t shared_next;
  __syncthreads();
  if (threadIdx.x == 0)
    shared_next =
        int64_t(atomicAdd(reinterpret_cast<unsigned long long*>(&selection->next_chunk), 1ull));
  __syncthreads();
  return shared_next;
}

// Reads 4 bytes a score and writes its bit: a byte per thread, 32 neighbouring bytes per warp.
__global__ void __launch_bounds__(kBlock)
    pack_masks(Table<ScoreSlot> table, bool largest, Selection* selection, TieStatus* status) {
  const uint32_t threshold = selection->key;
  const uint64_t wanted = selection->wanted;
  const bool some_ties_only = wanted < selection->equal;
  for (int64_t index = next_chunk(selection); index < table.chunks; index = next_chunk(selection)) {
    const Chunk chunk = chunk_at(table, index);
    const ScoreSlot& slot = table.slots[chunk.slot];
    const int first = int(threadIdx.x) * kGroup;
    GroupBits groups[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn)
      groups[turn] = compare(slot, chunk, turn * kBlock * kGroup + first, threshold, largest);
    if (some_ties_only) drop_late_ties(groups, status, index, wanted);
    const int whole_words = int(word_count(chunk.count)) * kWordBits;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int offset = turn * kBlock * kGroup + first;
      if (offset < whole_words)
        store_group_bits(slot.words, chunk.begin + offset, groups[turn].above | groups[turn].equal);
    }
  }
}

// Neighbouring dimensions that lie one behind the other become one; 1 is left out.
ScoreSlot slot_of(const Strided& score, uint32_t* words) {
  ScoreSlot slot = {score.data, words, score.numel, score.dtype, 0, {}, {}, {}};
  if (score.contiguous || score.numel == 0) return slot;
  for (size_t d = 0; d < score.sizes.size(); ++d) {
    const int64_t size = score.sizes[d], stride = score.strides[d];
    if (size == 1) continue;
    const int last = slot.dims - 1;
    if (slot.dims > 0 && slot.strides[last] == size * stride) {
      slot.sizes[last] *= size;
      slot.strides[last] = stride;
      continue;
    }
    if (slot.dims == kMaxDims)
      throw std::runtime_error(
          "salun_fast: scores: more than 8 dimensions in an order of their "
          "own; call .contiguous()");
    slot.sizes[slot.dims] = size;
    slot.strides[slot.dims++] = stride;
  }
  for (int d = 0; d < slot.dims; ++d) slot.inverses[d] = 1.0 / double(slot.sizes[d]);
  return slot;
}

Table<ScoreSlot> upload_scores(Workspace& workspace, std::span<const Strided> scores,
                               std::span<const Words> masks) {
  std::vector<ScoreSlot> slots;
  for (size_t i = 0; i < scores.size(); ++i)
    slots.push_back(slot_of(scores[i], masks.empty() ? nullptr : masks[i].data));
  return upload(workspace, slots);
}

void launch_pack(Workspace& workspace, const Table<ScoreSlot>& table, bool largest,
                 Selection* selection) {
  if (table.chunks == 0) return;
  cudaStream_t stream = stream_of(workspace);
  auto* status = scratch<TieStatus>(workspace, table.chunks);
  check(cudaMemsetAsync(status, 0, size_t(table.chunks) * sizeof *status, stream), "memset");
  LAUNCH(pack_masks, grid_for(table.chunks), kBlock, stream, table, largest, selection, status);
}

// No score at all is chosen; they are looked at for NaN and infinity only.
void choose_none(Workspace& workspace, const Table<ScoreSlot>& table, bool largest,
                 bool allow_nonfinite, Selection* selection, float* threshold) {
  begin_selection(workspace, selection, 0, 0);
  if (!allow_nonfinite)
    launch_count(workspace, table, 0, largest, selection, new_counts(workspace, 1));
  const float infinity = std::numeric_limits<float>::infinity();
  store(workspace, threshold, largest ? infinity : -infinity);
}

}  // namespace

void select(Workspace& workspace, std::span<const Strided> scores, int64_t k, bool largest,
            bool allow_nonfinite, std::span<const Words> masks, float* threshold) {
  auto table = upload_scores(workspace, scores, masks);
  auto* selection = scratch<Selection>(workspace, 1);
  if (k == 0) {
    choose_none(workspace, table, largest, allow_nonfinite, selection, threshold);
    if (!allow_nonfinite) refuse_nonfinite(workspace, selection);
    begin_selection(workspace, selection, kKeyMax, 0);
  } else {
    find_threshold(workspace, table, k, largest, selection, threshold);
    if (!allow_nonfinite) refuse_nonfinite(workspace, selection);
  }
  launch_pack(workspace, table, largest, selection);
}

void select_histogram(Workspace& workspace, std::span<const Strided> scores, uint32_t prefix,
                      int level, bool largest, int64_t* counts) {
  auto table = upload_scores(workspace, scores, {});
  auto* selection = scratch<Selection>(workspace, 1);
  begin_selection(workspace, selection, prefix, 0);
  check(cudaMemsetAsync(counts, 0, kHistogramBins * sizeof *counts, stream_of(workspace)),
        "memset");
  launch_count(workspace, table, level, largest, selection,
               reinterpret_cast<unsigned long long*>(counts));
}

void select_pack(Workspace& workspace, std::span<const Strided> scores, uint32_t threshold,
                 int64_t ties, bool largest, std::span<const Words> masks) {
  auto table = upload_scores(workspace, scores, masks);
  auto* selection = scratch<Selection>(workspace, 1);
  begin_selection(workspace, selection, threshold, ties);
  launch_pack(workspace, table, largest, selection);
}

}  // namespace salun::cuda
