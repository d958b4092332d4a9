// What selection ranks: scores that lie in memory, or differences made on the way.
#pragma once
#include "cpu/loops/loops.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace salun::cpu {

class Source {
 public:
  virtual ~Source() = default;
  virtual const ChunkPlan& plan() const = 0;
  // A chunk in the order that breaks ties. Points into the tensor where it can, else fills tile
  // [kChunk] and points there.
  virtual View view(const Chunk& chunk, float* tile) const = 0;
  // Single elements, for the few that a sample looks at.
  virtual void prefetch(int64_t tensor, int64_t index) const = 0;
  virtual float value(int64_t tensor, int64_t index) const = 0;
};

// Scores in row-major order of the logical tensor, whatever its strides.
class ScoreSource final : public Source {
 public:
  explicit ScoreSource(std::span<const Strided> scores) : scores_(scores), plan_(scores) {}
  const ChunkPlan& plan() const override { return plan_; }
  View view(const Chunk& chunk, float* tile) const override;
  void prefetch(int64_t tensor, int64_t index) const override;
  float value(int64_t tensor, int64_t index) const override;

 private:
  std::span<const Strided> scores_;
  ChunkPlan plan_;
};

// params - anchors in memory order: the threshold of SalUn-soft needs no order.
class DeltaSource final : public Source {
 public:
  DeltaSource(std::span<const Dense> params, std::span<const Dense> anchors)
      : params_(params), anchors_(anchors), plan_(params) {}
  const ChunkPlan& plan() const override { return plan_; }
  View view(const Chunk& chunk, float* tile) const override;
  void prefetch(int64_t tensor, int64_t index) const override;
  float value(int64_t tensor, int64_t index) const override;

 private:
  std::span<const Dense> params_, anchors_;
  ChunkPlan plan_;
};

}  // namespace salun::cpu
