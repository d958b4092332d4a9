// Facts about this build, for salun-fast doctor and _load.py. No torch headers here: older torches
// ship pybind11 headers that refuse the stable-ABI macros.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_build, m) {
  m.doc() = "Build facts of salun-fast's compiled ops.";
  m.def("available_isas", &salun::cpu::available_isas,
        "Instruction sets built in and supported by this machine, best last.");
  m.def("active_isa", &salun::cpu::active_isa, "The one that the hot loops use.");
  m.def(
      "build_facts",
      [] {
        py::dict facts;
        facts["version"] = SALUN_FAST_VERSION;
        facts["compiler"] = SALUN_FAST_COMPILER;
        facts["torch_abi_target"] = SALUN_FAST_TORCH_TARGET;
        facts["torch_headers"] = SALUN_FAST_TORCH_HEADERS;
        facts["cuda_toolkit"] = SALUN_FAST_CUDA_TOOLKIT;  // empty where the CUDA ops were not built
        facts["cuda_architectures"] = SALUN_FAST_CUDA_ARCHITECTURES;
        return facts;
      },
      "Version, compiler and the torch this was built against.");
}
