"""Parameter names: wrappers prefix them, users select them by pattern."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

# What wrappers put before the name of a whole model (DataParallel and DDP, latent diffusion) ...
_LEADING = ("module.", "model.diffusion_model.")
# ... and wherever a module is wrapped (torch.compile, FSDP, activation checkpointing).
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

Named = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
Patterns = str | Sequence[str] | None


def canonical(name: str) -> str:
    """The name without the prefixes of known wrappers: ``module._orig_mod.fc`` is ``fc``."""
    parts = name.split(".")
    for wrapper in _ANYWHERE:
        parts = [part for part in parts[:-1] if f"{part}." != wrapper] + parts[-1:]
    name = ".".join(parts)
    while True:
        prefix = next((p for p in _LEADING if name.startswith(p) and name != p), None)
        if prefix is None:
            return name
        name = name[len(prefix) :]


def match(wanted: Iterable[str], available: Collection[str]) -> dict[str, str]:
    """For each wanted name the available one that means the same; names without one are left out.

    Equal names come first, then equal canonical names. Raises ValueError where a name has several
    counterparts, or several names share one.
    """
    wanted = list(wanted)
    found = {name: name for name in wanted if name in available}
    by_canonical: dict[str, list[str]] = {}
    for name in available:
        if name not in found:
            by_canonical.setdefault(canonical(name), []).append(name)
    taken: dict[str, str] = {}
    for name in wanted:
        same = [] if name in found else by_canonical.get(canonical(name), [])
        if len(same) > 1:
            raise ValueError(f"{name!r} could be any of {', '.join(map(repr, same))}; rename one")
        if not same:
            continue
        if same[0] in taken:
            raise ValueError(f"{taken[same[0]]!r} and {name!r} both match {same[0]!r}; rename one")
        found[name] = same[0]
        taken[same[0]] = name
    return found


def eligible(names: Sequence[str], include: Patterns, exclude: Patterns) -> list[bool]:
    """Which names pass: matched by some ``include`` pattern (None: all) and by no ``exclude`` one.

    Patterns are names or globs (``*``, ``?``, ``[abc]``; ``*`` crosses dots), compared with the
    name as it is and with its canonical form. A pattern that matches nothing is a ValueError, as
    it is most likely misspelt.
    """
    included = [True] * len(names) if include is None else _matching(names, include, "include")
    excluded = [False] * len(names) if exclude is None else _matching(names, exclude, "exclude")
    return [take and not leave for take, leave in zip(included, excluded, strict=True)]


def named_tensors(source: Named) -> dict[str, Tensor]:
    """Parameters by name, in order; one that appears under several names counts at its first.

    Raises TypeError for anything but a module or (name, tensor) pairs, ValueError for a name that
    stands for two tensors.
    """
    if isinstance(source, nn.Module):
        pairs: Iterable[tuple[str, Tensor]] = source.named_parameters()
    else:
        pairs = source.items() if isinstance(source, Mapping) else source
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for pair in pairs:
        name, tensor = _checked_pair(pair)
        if name in found and found[name] is not tensor:
            raise ValueError(f"the name {name!r} stands for two parameters; make names unique")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _checked_pair(pair: object) -> tuple[str, Tensor]:
    if isinstance(pair, tuple) and len(pair) == 2:
        name, tensor = pair
        if isinstance(name, str) and isinstance(tensor, Tensor):
            return name, tensor
    raise TypeError(
        f"expected a module or pairs (name, parameter), found an item of {type(pair).__name__}; "
        "pass model or model.named_parameters()"
    )


def _matching(names: Sequence[str], patterns: str | Sequence[str], role: str) -> list[bool]:
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    matched = [False] * len(names)
    for pattern in wanted:
        hits = [_fits(name, pattern) for name in names]
        if not any(hits):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or list(names[:3])
            raise ValueError(
                f"{role}: {pattern!r} matches no parameter; near it are "
                f"{', '.join(map(repr, near))} (globs such as '*.weight' may be used)"
            )
        matched = [old or new for old, new in zip(matched, hits, strict=True)]
    return matched


def _fits(name: str, pattern: str) -> bool:
    return pattern in (name, canonical(name)) or any(
        fnmatchcase(form, pattern) for form in (name, canonical(name))
    )
