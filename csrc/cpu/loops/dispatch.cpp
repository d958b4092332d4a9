#include "cpu/isa.h"
#include "cpu/loops/loops.h"

namespace salun::cpu {

namespace baseline {
extern const Loops variant;
}
#if defined(SALUN_X86_VARIANTS)
namespace avx2 {
extern const Loops variant;
}
namespace avx512 {
extern const Loops variant;
}
#endif

const Loops& loops() {
  static const Loops& chosen = []() -> const Loops& {
#if defined(SALUN_X86_VARIANTS)
    std::string isa = active_isa();
    if (isa == "avx512") return avx512::variant;
    if (isa == "avx2") return avx2::variant;
#endif
    return baseline::variant;
  }();
  return chosen;
}

}  // namespace salun::cpu
