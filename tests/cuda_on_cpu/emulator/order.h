// In which order the blocks of a launch and the threads of a block run. Whatever it is, a correct
// kernel gives the same bits.
#pragma once
#include <cstdint>
#include <random>
#include <vector>

namespace cuda_on_cpu {

class Order {
 public:
  // CUDA_ON_CPU_ORDER: forward, reverse, or a number to shuffle by, differently in each launch.
  static Order from_environment();

  // One of its own for each block: workers do not share it.
  Order for_block(uint64_t index) const;

  std::vector<uint64_t> of(uint64_t count);

  // How many atomic operations a thread does before others run: those it may be waiting for, or,
  // with a shuffled order, anyone.
  unsigned patience();

 private:
  enum class Kind { forward, reverse, shuffled };
  Kind kind_ = Kind::forward;
  std::mt19937 random_;
};

}  // namespace cuda_on_cpu
