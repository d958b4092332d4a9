// Masks from a threshold, by reading every score.
#pragma once
#include <vector>

#include "cpu/kth.h"
#include "cpu/source.h"

namespace salun::cpu {

void pack_masks(const Source& source, Threshold threshold, bool largest,
                std::span<const Words> masks);

// One chunk's words: bits of the keys above the threshold and of its first ties. Returns how many
// keys equal it, taken or not.
int64_t pack_chunk(const Source& source, const Chunk& chunk, Threshold threshold, bool largest,
                   uint32_t* words);

// How many of each chunk's ties belong to the first `wanted`: the lowest index wins.
std::vector<int64_t> first_come(const std::vector<int64_t>& ties, int64_t wanted);

}  // namespace salun::cpu
