#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>

namespace salun::cpu {

std::vector<std::string> available_isas() {
  std::vector<std::string> found = {"baseline"};
#if defined(SALUN_X86_VARIANTS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma"))
    found.push_back("avx512");
#endif
  return found;
}

std::string active_isa() {
  auto found = available_isas();
  const char* wanted = std::getenv("SALUN_FAST_ISA");
  bool known = wanted && std::find(found.begin(), found.end(), wanted) != found.end();
  return known ? wanted : found.back();
}

}  // namespace salun::cpu
