// A stack of its own that can be entered and left: what one CUDA thread runs on.
#pragma once
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace cuda_on_cpu {

// Where a scheduler stands while a fibre runs.
struct Scheduler {
  void* stack_pointer = nullptr;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
};

class Fibre {
 public:
  Fibre();
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // The next enter() calls `body`, which must end with leave(..., true) and never return.
  void prepare(void (*body)());

  void enter(Scheduler& from);
  void leave(Scheduler& to, bool for_good);

  // First in every body: tells AddressSanitizer that the switch is complete.
  static void arrived(Scheduler& from);

  // Forgets a body that will never go on.
  void abandon();

  void* tsan() const { return tsan_; }

 private:
  char* stack_;
  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

// Fibres are dear, above all under ThreadSanitizer: they are kept from launch to launch. There,
// a fibre stands for one CUDA thread only until the launch ends, or races between threads that
// share one would go unseen; past `kMostWatched` threads a launch the first ones are used again.
class FibrePool {
 public:
  static FibrePool& instance();

  Fibre* take();
  void give_back(Fibre* fibre);
  void end_launch();

 private:
  static constexpr size_t kMostWatched = 2048;

  std::mutex mutex_;  // between workers
  std::vector<std::unique_ptr<Fibre>> all_;
  std::vector<Fibre*> idle_;    // the last one first: its stack is warm
  std::deque<Fibre*> resting_;  // used in this launch
};

}  // namespace cuda_on_cpu
