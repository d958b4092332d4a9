// One block: its threads take turns on the OS thread that runs it, and change at collectives.
#pragma once
#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine.h"
#include "fibre.h"
#include "launch.h"

namespace cuda_on_cpu {

// What fences order for ThreadSanitizer. A release: an atomic operation after a fence hands on what
// came before. An acquire: a fence takes what was handed on by the atomics that came before it.
class Fences {
 public:
  void fence();
  void before_atomic(void* address);

 private:
  static constexpr size_t kRemembered = 16;
  bool fenced_ = false;
  std::array<void*, kRemembered> recent_{};  // the addresses of the latest atomic operations
  size_t count_ = 0;
};

// How a thread arrived at a collective.
struct Arrival {
  Collective kind;
  unsigned mask;
  uint64_t value;
  int source;
  Site site;
};

struct Thread {
  enum class State : uint8_t { ready, at_barrier, at_warp, done };

  unsigned id;
  uint3 index;
  State state = State::ready;
  bool gave_way = false;
  unsigned patience;
  Fibre* fibre = nullptr;  // from its first turn to its end
  Arrival arrival{};
  uint64_t result = 0;
  Fences fences;
};

class Block {
 public:
  void run(Launch& launch, uint64_t index);

  // Called by the thread whose turn it is.
  Thread& current() { return *current_; }
  const Launch& launch() const { return *launch_; }
  uint3 index() const { return index_; }
  uint64_t meet(Thread::State state, const Arrival& arrival);
  void before_atomic(void* address);

 private:
  void begin(uint64_t index);
  void end();

  bool run_ready_threads();
  void take_turn(Thread& thread);
  void start(Thread& thread);
  void finish(Thread& thread);
  void release_to_host(Thread& thread);
  void leave();
  static void thread_body();

  bool all_done() const;
  std::span<Thread> warp_of(const Thread& thread);
  bool in_mask(const Thread& caller, const Thread& other) const;
  void try_collective(Thread& last);
  bool try_barrier();
  void order_memory(std::span<Thread* const> threads);

  void fail(const std::string& why);
  void report_foreign_mask(const Thread& thread);
  void report_divergent_barrier();
  void report_deadlock();
  std::string why_stuck(const Thread& thread);
  std::string describe(const Thread& thread) const;

  Launch* launch_ = nullptr;
  uint3 index_{};
  std::vector<Thread> threads_;
  Order order_;
  std::vector<uint64_t> turns_;
  Scheduler scheduler_;
  Thread* current_ = nullptr;
};

const char* name_of(Collective kind);

}  // namespace cuda_on_cpu
