// __shared__ arrays are thread-local variables of this library.
#pragma once

namespace cuda_on_cpu {

// On the OS thread that will run the block, before anything else: shared memory begins with
// rubbish.
void prepare_shared_memory();

}  // namespace cuda_on_cpu
