// What kernels ask of the engine: where they run, collectives, fences, and a launch.
#pragma once
#include <cstdint>
#include <source_location>
#include <tuple>

#include "types.h"

namespace cuda_on_cpu {

constexpr int kWarpSize = 32;

// Of the CUDA thread that calls. By value: what the engine writes, sanitizers need not see.
[[gnu::pure]] uint3 thread_index();
[[gnu::pure]] uint3 block_index();
[[gnu::pure]] dim3 block_size();
[[gnu::pure]] dim3 grid_size();
[[gnu::pure]] int lane();

enum class Collective : uint8_t {
  // of a block
  barrier,
  barrier_count,
  barrier_and,
  barrier_or,
  // of a warp
  sync,
  ballot,
  any,
  all,
  shuffle,
  match_any,
  reduce_add,
  reduce_min,
  reduce_max,
  reduce_and,
  reduce_or,
  reduce_xor,
};

using Site = std::source_location;

// Returns when all threads of the block have arrived.
uint64_t meet_block(Collective kind, bool predicate, Site site);

// Returns when all lanes of `mask` have arrived at the same site. `source`: the lane to read from.
uint64_t meet_warp(Collective kind, unsigned mask, uint64_t value, int source, Site site);

// __threadfence(): what came before is seen by whoever reads, and then fences, an atomic that is
// written after it.
void fence();

// Before each atomic operation: orders memory by fences, and lets others run who are waited for.
void before_atomic(void* address);

// Runs call(context) once per thread. Throws std::runtime_error("cuda_on_cpu: ...").
void launch(dim3 grid, dim3 block, void (*call)(const void*), const void* context);

// The arguments become the kernel's parameters here, once, as on a GPU; each thread gets a copy.
template <class... Parameters, class... Arguments>
void launch_kernel(dim3 grid, dim3 block, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
  struct Context {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Context context = {kernel, std::tuple<Parameters...>(arguments...)};
  auto call = [](const void* pointer) {
    auto* self = static_cast<const Context*>(pointer);
    std::apply(self->kernel, self->parameters);
  };
  launch(grid, block, call, &context);
}

}  // namespace cuda_on_cpu

// The stream is of no account: a launch is over when this returns.
#define LAUNCH(kernel, grid, block, stream, ...)                                  \
  do {                                                                            \
    static_cast<void>(stream);                                                    \
    ::cuda_on_cpu::launch_kernel(grid, block, kernel __VA_OPT__(, ) __VA_ARGS__); \
  } while (0)
