// What each thread gets from a collective that is complete.
#pragma once
#include <span>
#include <string>

#include "block.h"

namespace cuda_on_cpu {

// Same function, same mask, same line of source: on a GPU anything else is undefined.
bool same_call(const Arrival& a, const Arrival& b);

void set_block_results(std::span<Thread* const> threads);
void set_warp_results(std::span<Thread* const> members, std::span<Thread> warp);

std::string hexadecimal(unsigned mask);

}  // namespace cuda_on_cpu
