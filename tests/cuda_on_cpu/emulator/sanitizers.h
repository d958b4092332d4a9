// What the sanitizers' runtimes offer to programs that run on several stacks. Weak: null where a
// process runs without them, so one engine serves every build.
#pragma once
#include <cstddef>

#define CUDA_ON_CPU_WEAK extern "C" __attribute__((weak))

// ThreadSanitizer: a fibre is a thread to it; acquire(token) sees what was before release(token).
CUDA_ON_CPU_WEAK void* __tsan_create_fiber(unsigned flags);
CUDA_ON_CPU_WEAK void* __tsan_get_current_fiber();
CUDA_ON_CPU_WEAK void __tsan_destroy_fiber(void* fiber);
CUDA_ON_CPU_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
CUDA_ON_CPU_WEAK void __tsan_acquire(void* token);
CUDA_ON_CPU_WEAK void __tsan_release(void* token);
CUDA_ON_CPU_WEAK void AnnotateIgnoreReadsBegin(const char* file, int line);
CUDA_ON_CPU_WEAK void AnnotateIgnoreReadsEnd(const char* file, int line);
CUDA_ON_CPU_WEAK void AnnotateIgnoreWritesBegin(const char* file, int line);
CUDA_ON_CPU_WEAK void AnnotateIgnoreWritesEnd(const char* file, int line);

// AddressSanitizer: which stack is in use, and that an abandoned one is clean again.
CUDA_ON_CPU_WEAK void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
CUDA_ON_CPU_WEAK void __sanitizer_finish_switch_fiber(void* saved, const void** bottom,
                                                      size_t* size);
CUDA_ON_CPU_WEAK void __asan_unpoison_memory_region(void const volatile* begin, size_t size);

namespace cuda_on_cpu {

inline bool watches_threads() { return __tsan_create_fiber != nullptr; }
inline bool watches_addresses() { return __asan_unpoison_memory_region != nullptr; }

// A switch that orders nothing: only barriers and fences of the kernel do.
constexpr unsigned kWithoutOrder = 1;

// A switch after which the fibre sees what the one before it did.
constexpr unsigned kInOrder = 0;

// The engine's own work is no part of the program under test.
class Unwatched {
 public:
  Unwatched() {
    if (!watches_threads()) return;
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    if (!watches_threads()) return;
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

}  // namespace cuda_on_cpu
