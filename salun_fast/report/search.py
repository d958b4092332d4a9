"""What the search for settings leaves open."""

from __future__ import annotations

from collections.abc import Mapping

from salun_fast.report.source import Record, Source
from salun_fast.report.words import METHOD_NAMES


def edge_notes(source: Source, phrases: Mapping[str, str]) -> list[str]:
    """One line per method whose chosen setting is the largest or smallest it tried: a wider
    search might serve it better. phrases: how each task is called inside a sentence."""
    notes = []
    for choice in source.of("choice"):
        tried = [
            r
            for r in source.of("search")
            if (r["task"], r["method"]) == (choice["task"], choice["method"])
        ]
        for name, value in choice["overrides"].items():
            edge = _edge(name, value, tried)
            if edge:
                notes.append(
                    f"{METHOD_NAMES[choice['method']]}, {phrases[choice['task']]}: {name} "
                    f"{value:g} is the {edge} tried"
                )
    return notes


def _edge(name: str, value: float, tried: list[Record]) -> str | None:
    values = {r["overrides"][name] for r in tried if name in r["overrides"]}
    if len(values) < 2:
        return None
    return {max(values): "largest", min(values): "smallest"}.get(value)
