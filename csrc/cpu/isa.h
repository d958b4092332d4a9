// Which instruction set the hot loops use.
#pragma once
#include <string>
#include <vector>

namespace salun::cpu {

// Built in and supported by this machine, best last.
std::vector<std::string> available_isas();

// SALUN_FAST_ISA where it names an available one, else the best.
std::string active_isa();

}  // namespace salun::cpu
