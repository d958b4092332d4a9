// A list of tensors as kernels see it: one slot per tensor, and the chunks of the whole list, so
// that one launch serves them all. It lies in device memory: its size knows no limit.
#pragma once
#include <cstring>
#include <type_traits>
#include <vector>

#include "chunks.h"
#include "cuda/launch.cuh"

namespace salun::cuda {

// Elements of a chunk: two turns of a block, eight elements per thread and turn.
constexpr int kGroup = 8;
constexpr int64_t kChunk = 2 * kBlock * kGroup;

// Queues a copy of `bytes` (a multiple of 16) host bytes; `data` may go when this returns.
void upload(Workspace& workspace, const void* data, int64_t bytes, void* to);

template <class Slot>
struct Table {
  const Slot* slots;     // [count]
  const int64_t* first;  // [count + 1], see chunks.h
  int64_t count, chunks;
};

inline int64_t whole_quads(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Slots are plain data with a `numel`.
template <class Slot>
Table<Slot> upload(Workspace& workspace, const std::vector<Slot>& slots) {
  static_assert(std::is_trivially_copyable_v<Slot>);
  std::vector<int64_t> first = first_chunks(slots, kChunk);
  int64_t slot_bytes = whole_quads(int64_t(slots.size() * sizeof(Slot)));
  int64_t first_bytes = whole_quads(int64_t(first.size() * sizeof(int64_t)));
  std::vector<char> bytes(size_t(slot_bytes + first_bytes));
  if (!slots.empty()) std::memcpy(bytes.data(), slots.data(), slots.size() * sizeof(Slot));
  std::memcpy(bytes.data() + slot_bytes, first.data(), first.size() * sizeof(int64_t));
  auto* device = scratch<char>(workspace, int64_t(bytes.size()));
  upload(workspace, bytes.data(), int64_t(bytes.size()), device);
  return {reinterpret_cast<const Slot*>(device),
          reinterpret_cast<const int64_t*>(device + slot_bytes), int64_t(slots.size()),
          first.back()};
}

// Part of a tensor.
struct Chunk {
  int64_t slot, begin;  // begin: in elements of the tensor
  int count;
};

template <class Slot>
__device__ __forceinline__ Chunk chunk_at(const Table<Slot>& table, int64_t index) {
  int64_t slot = owner_of(table.first, table.count, index);
  int64_t begin = (index - table.first[slot]) * kChunk;
  int64_t left = table.slots[slot].numel - begin;
  return {slot, begin, int(left < kChunk ? left : kChunk)};
}

// Shares the chunks among the blocks of the launch.
template <class Slot, class Body>
__device__ __forceinline__ void for_each_chunk(const Table<Slot>& table, Body body) {
  for (int64_t index = blockIdx.x; index < table.chunks; index += gridDim.x)
    body(chunk_at(table, index));
}

// Shares a chunk among the threads of a block: body(first element, how many), eight or fewer.
template <class Body>
__device__ __forceinline__ void for_each_group(const Chunk& chunk, Body body) {
  for (int at = int(threadIdx.x) * kGroup; at < chunk.count; at += kBlock * kGroup)
    body(chunk.begin + at, chunk.count - at < kGroup ? chunk.count - at : kGroup);
}

}  // namespace salun::cuda
