"""Methods that a wrapper inherits, and that must act on the optimizer which it wraps.

Lightning's ``self.optimizers()`` is such a wrapper: it takes on the optimizer's class, reads
through to it, and keeps for itself what is set on it. A mask set there would never act.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def on_the_wrapped_one(method: Method) -> Method:
    """Call ``method`` on the optimizer itself, also where a wrapper of it is called."""

    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        return method(self.__dict__.get("_optimizer", self), *arguments, **options)

    return call  # type: ignore[return-value]
