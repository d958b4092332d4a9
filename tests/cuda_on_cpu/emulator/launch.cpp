#include "launch.h"

#include <cstdlib>
#include <deque>
#include <stdexcept>
#include <thread>

#include "block.h"
#include "sanitizers.h"

namespace cuda_on_cpu {
namespace {

std::atomic<int64_t> launches{0};

double number_from_environment(const char* name, double otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atof(value) : otherwise;
}

void check(dim3 grid, dim3 block) {
  uint64_t threads = uint64_t(block.x) * block.y * block.z;
  bool sound = threads >= 1 && threads <= 1024 && block.z <= 64 && grid.x >= 1 && grid.y >= 1 &&
               grid.z >= 1 && grid.x < 1u << 31 && grid.y < 1u << 16 && grid.z < 1u << 16;
  if (!sound) throw std::runtime_error("cuda_on_cpu: invalid launch configuration");
}

// Kept from launch to launch: one per worker. A deque, for it grows while others are in use.
Block& block_of(size_t worker) {
  static auto& blocks = *new std::deque<Block>;
  static std::mutex growing;
  std::lock_guard guard(growing);
  while (blocks.size() <= worker) blocks.emplace_back();
  return blocks[worker];
}

// ThreadSanitizer must not take the shared memory of one block for that of the next: there, each
// block has an OS thread of its own.
void run_block(Launch& launch, size_t worker, uint64_t index) {
  Block& block = block_of(worker);
  if (watches_threads())
    std::thread([&] { block.run(launch, index); }).join();
  else
    block.run(launch, index);
}

void run_in_turn(Launch& launch, const std::vector<uint64_t>& order) {
  for (uint64_t index : order)
    if (!launch.failed()) run_block(launch, 0, index);
}

void run_side_by_side(Launch& launch, const std::vector<uint64_t>& order) {
  std::atomic<size_t> next{0};
  auto work = [&](size_t worker) {
    for (size_t i; (i = next++) < order.size() && !launch.failed();)
      run_block(launch, worker, order[i]);
  };
  std::vector<std::thread> workers;
  for (size_t w = 0; w < size_t(launch.workers); ++w) workers.emplace_back(work, w);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

Launch::Launch(dim3 grid_size, dim3 block_size, void (*kernel_call)(const void*),
               const void* call_context)
    : grid(grid_size),
      block(block_size),
      call(kernel_call),
      context(call_context),
      order(Order::from_environment()) {
  // AddressSanitizer: all blocks share one copy of the shared arrays, see types.h.
  if (!watches_addresses()) workers = int(number_from_environment("CUDA_ON_CPU_WORKERS", 1));
  std::chrono::duration<double> limit(number_from_environment("CUDA_ON_CPU_SECONDS", 120));
  deadline_ = std::chrono::steady_clock::now() +
              std::chrono::duration_cast<std::chrono::steady_clock::duration>(limit);
}

void Launch::fail(const std::string& why) {
  std::lock_guard guard(mutex_);
  if (error_.empty()) error_ = why;
  has_failed_ = true;
}

void launch(dim3 grid, dim3 block, void (*call)(const void*), const void* context) {
  static std::mutex one_at_a_time;
  check(grid, block);
  std::lock_guard guard(one_at_a_time);
  Launch launch(grid, block, call, context);
  std::vector<uint64_t> order = launch.order.of(launch.blocks());
  ++launches;
  if (watches_threads()) __tsan_release(&launch.begin);
  if (launch.workers > 1 && order.size() > 1)
    run_side_by_side(launch, order);
  else
    run_in_turn(launch, order);
  if (watches_threads()) __tsan_acquire(&launch.end);
  FibrePool::instance().end_launch();
  if (launch.failed()) throw std::runtime_error("cuda_on_cpu: " + launch.error());
}

}  // namespace cuda_on_cpu

// For tests that count.
extern "C" int64_t cuda_on_cpu_launches() { return cuda_on_cpu::launches; }
