// One launch, as its blocks share it.
#pragma once
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <vector>

#include "engine.h"
#include "order.h"

namespace cuda_on_cpu {

struct Launch {
  Launch(dim3 grid_size, dim3 block_size, void (*kernel_call)(const void*),
         const void* call_context);

  uint64_t blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
  unsigned threads() const { return block.x * block.y * block.z; }

  bool failed() const { return has_failed_; }
  void fail(const std::string& why);  // the first one counts
  const std::string& error() const { return error_; }

  // A kernel that waits in vain must not stop the tests.
  bool takes_too_long() const { return std::chrono::steady_clock::now() > deadline_; }

  const dim3 grid, block;
  void (*const call)(const void*);
  const void* const context;
  Order order;
  int workers = 1;

  // ThreadSanitizer: what the host did before is seen by all threads, what they did by the host.
  char begin = 0, end = 0;

 private:
  std::mutex mutex_;
  std::string error_;
  std::atomic<bool> has_failed_{false};
  std::chrono::steady_clock::time_point deadline_;
};

}  // namespace cuda_on_cpu
