// Compiled once per instruction set with -DSALUN_ISA=<name> and that set's flags.
#include "cpu/loops/accumulate.h"
#include "cpu/loops/masked_adam.h"
#include "cpu/loops/masked_sgd.h"
#include "cpu/loops/per_sample.h"
#include "cpu/loops/select.h"
#include "cpu/loops/soft_threshold.h"

namespace salun::cpu::SALUN_ISA {

extern const Loops variant;
const Loops variant = {accumulate, load,       delta,       take_census,   histogram,
                       pack,       masked_sgd, masked_adam, soft_threshold,
                       kTileRows,  kPanelLanes, pack_panel, add_tile};

}  // namespace salun::cpu::SALUN_ISA
