"""How large the largest tensors of the op tests are."""

from __future__ import annotations

import os

# Past the size where the CPU brackets the threshold by a sample. Runs under a sanitizer ask for
# less: the emulated kernels take no sample.
BIG = int(os.environ.get("SALUN_FAST_TEST_BIG", "2500000"))
