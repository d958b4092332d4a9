// The exact k-th key of a source, and how many of its ties belong to the k.
#pragma once
#include <optional>

#include "cpu/sift.h"

namespace salun::cpu {

struct Found {
  Threshold threshold;
  // The pass that found it and wrote the words complete_masks() completes; none where the digits
  // did, which write no words.
  std::optional<Sifted> by;
};

// k in 1..N. Throws std::runtime_error naming the position in the list where a value is NaN or
// infinite, unless allow_nonfinite. Masks may be none: then no words are written.
Found find_threshold(const Source& source, int64_t k, bool largest, bool allow_nonfinite,
                     std::span<const Words> masks);

void refuse_nonfinite(const Source& source);

}  // namespace salun::cpu
