"""Optional packages, imported where they are used and asked for by their pip extra."""

from __future__ import annotations

import importlib
from typing import Any

DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}  # where the import name differs


def need(module: str, purpose: str, *, extra: str = "demo") -> Any:
    """The module ``module``, or an ImportError that says what to install and what for."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = DISTRIBUTIONS.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(
            f'{purpose} needs {name}, which is not installed: pip install "salun-fast[{extra}]"'
        ) from error
