#include "fibre.h"

#include <sys/mman.h>

#include <stdexcept>

#include "sanitizers.h"

#if !defined(__x86_64__)
#error "cuda_on_cpu: switch_stacks is written for x86-64"
#endif

// Saves the registers that a call must preserve and the stack in *save, and goes on at `to`.
extern "C" void cuda_on_cpu_switch_stacks(void** save, void* to);
asm(R"(
.text
.type cuda_on_cpu_switch_stacks, @function
cuda_on_cpu_switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size cuda_on_cpu_switch_stacks, . - cuda_on_cpu_switch_stacks
)");

namespace cuda_on_cpu {
namespace {

// A kernel argument of 32 KB lies on each stack; the rest is for a sanitizer that reports.
constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;
constexpr int kSavedRegisters = 6;

char* new_stack() {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("cuda_on_cpu: no memory for a stack");
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<char*>(memory);
}

}  // namespace

Fibre::Fibre() : stack_(new_stack()) {
  if (watches_threads()) tsan_ = __tsan_create_fiber(0);
}

Fibre::~Fibre() {
  if (tsan_) __tsan_destroy_fiber(tsan_);
  munmap(stack_, kStackBytes);
}

void Fibre::prepare(void (*body)()) {
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
  *--top = nullptr;  // the return address of body, which keeps the stack aligned
  *--top = reinterpret_cast<void*>(body);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
  fake_stack_ = nullptr;
}

void Fibre::enter(Scheduler& from) {
  if (watches_addresses())
    __sanitizer_start_switch_fiber(&from.fake_stack, stack_ + kGuardBytes,
                                   kStackBytes - kGuardBytes);
  if (tsan_) __tsan_switch_to_fiber(tsan_, kWithoutOrder);
  cuda_on_cpu_switch_stacks(&from.stack_pointer, stack_pointer_);
  if (watches_addresses()) __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void Fibre::leave(Scheduler& to, bool for_good) {
  if (watches_addresses())
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, to.stack_bottom,
                                   to.stack_size);
  if (tsan_) __tsan_switch_to_fiber(to.tsan, kWithoutOrder);
  cuda_on_cpu_switch_stacks(&stack_pointer_, to.stack_pointer);
  if (watches_addresses()) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
}

void Fibre::arrived(Scheduler& from) {
  if (watches_addresses())
    __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_size);
}

void Fibre::abandon() {
  if (watches_addresses())
    __asan_unpoison_memory_region(stack_ + kGuardBytes, kStackBytes - kGuardBytes);
  if (!tsan_) return;
  __tsan_destroy_fiber(tsan_);
  tsan_ = __tsan_create_fiber(0);
}

FibrePool& FibrePool::instance() {
  // Never destroyed: at exit the sanitizers' runtimes may be gone already.
  static auto& pool = *new FibrePool;
  return pool;
}

Fibre* FibrePool::take() {
  std::lock_guard guard(mutex_);
  if (!idle_.empty()) {
    Fibre* fibre = idle_.back();
    idle_.pop_back();
    return fibre;
  }
  if (all_.size() < kMostWatched || resting_.empty()) {
    Unwatched quiet;
    all_.push_back(std::make_unique<Fibre>());
    return all_.back().get();
  }
  Fibre* fibre = resting_.front();
  resting_.pop_front();
  return fibre;
}

void FibrePool::give_back(Fibre* fibre) {
  std::lock_guard guard(mutex_);
  if (watches_threads())
    resting_.push_back(fibre);
  else
    idle_.push_back(fibre);
}

void FibrePool::end_launch() {
  idle_.insert(idle_.end(), resting_.begin(), resting_.end());
  resting_.clear();
}

}  // namespace cuda_on_cpu
