// Work over lists of tensors, cut into chunks of whole mask words and shared among threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "chunks.h"
#include "cpu/loops/loops.h"

namespace salun::cpu {

// Calls body(context, begin, end) over parts of [0, n). Defined by whoever links the kernels: by
// torch's pool in register.cpp, by std::thread in the sanitizer tests.
void parallel_for(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

struct Chunk {
  int64_t index;   // among all chunks of the list
  int64_t tensor;  // position in the list
  int64_t begin, count;
};

// The chunks of a list.
class ChunkPlan {
 public:
  template <class Tensors>
  explicit ChunkPlan(const Tensors& tensors) : first_(first_chunks(tensors, kChunk)) {
    for (const auto& tensor : tensors) numels_.push_back(tensor.numel);
  }

  int64_t size() const { return first_.back(); }

  // The flat index of each tensor's first element, and behind them the number of all elements.
  std::vector<int64_t> origins() const {
    std::vector<int64_t> result = {0};
    for (int64_t numel : numels_) result.push_back(result.back() + numel);
    return result;
  }

  Chunk at(int64_t index) const {
    int64_t tensor = owner_of(first_.data(), int64_t(numels_.size()), index);
    int64_t begin = (index - first_[tensor]) * kChunk;
    return {index, tensor, begin, std::min(kChunk, numels_[tensor] - begin)};
  }

  // Calls body(const Chunk&) once per chunk, in parallel.
  template <class Body>
  void for_each(Body body) const {
    struct Context {
      const ChunkPlan& plan;
      Body& body;
    } context{*this, body};
    parallel_for(
        size(), 2,
        [](void* opaque, int64_t begin, int64_t end) {
          auto& [plan, run] = *static_cast<Context*>(opaque);
          for (int64_t i = begin; i < end; ++i) run(plan.at(i));
        },
        &context);
  }

 private:
  std::vector<int64_t> numels_, first_;
};

}  // namespace salun::cpu
