// Stands where CUDA's own header of this name stands for nvcc: the .cu files find it by -I.
#pragma once
#include "atomics.h"
#include "collectives.h"
#include "engine.h"
#include "intrinsics.h"
#include "runtime_api.h"
#include "types.h"
