"""salun-fast: weight saliency, exact masks and masked optimizer steps for machine unlearning."""

from __future__ import annotations

from salun_fast import ops

__all__ = ["ops"]
