"""CUDA graphs: is this step being recorded rather than run?"""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether the current stream is captured: launches are recorded, no value can be looked at.

    torch asks the driver, so only where there is one; a compiled step is traced, not captured.
    """
    if torch.compiler.is_compiling() or not torch.cuda.is_available():
        return False
    return torch.cuda.is_current_stream_capturing()


def refuse_new_state(name: str) -> None:
    """State made in a capture would be made again at every replay, and nothing would say so."""
    if capturing():
        raise RuntimeError(
            f"'{name}' has no optimizer state on its device yet, and a CUDA graph that makes it "
            "would reset it at every replay; run one ordinary step() before the capture"
        )
