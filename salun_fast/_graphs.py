"""What ``torch.compile`` leaves out of graphs.

Importing this imports torch's compiler, which takes a second: do so only in code that it traces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from salun_fast.optimizer import SalUnOptimizer


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="SalUnOptimizer fuses SGD, Adam and AdamW; other classes, fp64 and sharded parameters "
    "step outside of graphs"
)
def step_outside(optimizer: SalUnOptimizer) -> None:
    """The step, run eagerly; where one graph is insisted on, dynamo's error gives the reason."""
    optimizer._step_on(optimizer._collect())
