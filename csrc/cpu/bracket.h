// Two keys that enclose the k-th key of a source, told by a sample.
#pragma once
#include "cpu/source.h"

namespace salun::cpu {

struct Guess {
  Bracket bracket;
  int64_t room;  // more keys than that are strictly inside only where the sample misled
};

constexpr int kGuesses = 2;

// attempt in 0..kGuesses - 1: each draws anew, and the second allows for a wider error.
Guess guess_bracket(const Source& source, int64_t k, bool largest, int attempt);

}  // namespace salun::cpu
