// Runs every entry of csrc/ops.h without torch, on awkward sizes, against scalar.h, bit for bit.
// Built under sanitizers, and with guard pages as shipped, by tests/test_sanitizers.py.
//   driver           all cases; prints how many comparisons held
//   driver isas      instruction sets that SALUN_FAST_ISA may name here
//   driver FAULT     a planted fault (faults.cpp)
#include <thread>

#include "cases.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

// Three threads at a time, whatever the machine has: uneven parts, real concurrency.
void salun::cpu::parallel_for(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t),
                              void* context) {
  int64_t parts = std::min<int64_t>(3, (n + grain - 1) / grain);
  if (parts <= 1) return n > 0 ? body(context, 0, n) : void();
  std::vector<std::thread> threads;
  for (int64_t part = 0; part < parts; ++part) {
    int64_t begin = threads_overlap ? 0 : n * part / parts, end = n * (part + 1) / parts;
    threads.emplace_back(body, context, begin, end);
  }
  for (std::thread& thread : threads) thread.join();
}

int main(int argc, char** argv) {
  std::string wanted = argc > 1 ? argv[1] : "";
  if (wanted == "isas") {
    for (const std::string& isa : salun::cpu::available_isas()) std::printf("%s\n", isa.c_str());
    return 0;
  }
  if (!wanted.empty()) return run_fault(wanted) ? 0 : (fail("unknown argument " + wanted), 1);
#if defined(__SANITIZE_THREAD__)
  bool briefly = true;  // one selection shows all threads at work; each costs seconds
#else
  bool briefly = false;
#endif
  accumulate_cases();
  select_cases();
  sampling_cases(briefly);
  step_cases();
  soft_threshold_cases();
  per_sample_cases();
  plan_cases();
  std::printf("%lld comparisons held with %s\n", static_cast<long long>(held),
              salun::cpu::active_isa().c_str());
  return 0;
}
