// From a dtype known at run time to a format known to the compiler.
#pragma once
#include "ops.h"
#include "rules/number.h"

namespace salun {

// Calls body, of the host or of the device, with the format that `dtype` names. Static: every
// instruction set keeps its own.
#pragma nv_exec_check_disable
template <class Body>
SALUN_RULE void with_format(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::f32: return body(Float32{});
    case Dtype::f16: return body(Float16{});
    case Dtype::bf16: return body(BFloat16{});
  }
}

}  // namespace salun
