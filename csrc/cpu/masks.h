// The words that belong to a chunk.
#pragma once
#include "ops.h"
#include "rules/bits.h"

namespace salun::cpu {

inline uint32_t* words_at(const Words& mask, int64_t element) {
  return mask.data ? mask.data + element / kWordBits : nullptr;
}

}  // namespace salun::cpu
