"""The table, on the screen and as benchmarks/results/soak.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from benchmarks.soak.watch import ALLOWED_BYTES, ALLOWED_OBJECTS, Growth, Sample
from benchmarks.soak.work import Plan, Way
from salun_fast import machine

HEADER = (
    "way", "MB, first", "MB, last", "growth MB", "tensors", "growth", "objects", "growth", "memory",
)  # fmt: skip
COLUMNS = 8  # of the second table
_MEGABYTE = 1e6

Found = Mapping[Way, Sequence[Sample]]


def markdown(found: Found, plan: Plan, command: str) -> str:
    own = "\n".join(f"* {name}: {value}" for name, value in machine.facts().items())
    return "\n\n".join(
        [
            "# Memory over many masked steps",
            f"`{command}`, {time.strftime('%Y-%m-%d')}",
            _subject(plan),
            _table(HEADER, [line(way, samples) for way, samples in found.items()]),
            _legend(),
            "Resident MB on the way, by step:",
            _on_the_way(found),
            f"## Machine\n\n{own}\n",
        ]
    )


def line(way: Way, samples: Sequence[Sample]) -> list[str]:
    """As :data:`HEADER` names the columns."""
    growth, first, last = Growth.over(samples), samples[0], samples[-1]
    return [
        way.name,
        f"{first.resident / _MEGABYTE:,.1f}",
        f"{last.resident / _MEGABYTE:,.1f}",
        f"{growth.resident / _MEGABYTE:+,.2f}",
        f"{last.tensors:,}",
        f"{growth.tensors:+,.0f}",
        f"{last.objects:,}",
        f"{growth.objects:+,.0f}",
        verdict(growth),
    ]


def verdict(growth: Growth) -> str:
    return "flat" if growth.flat else "GROWS"


def _subject(plan: Plan) -> str:
    return (
        f"{plan.steps:,} steps of each way on a small convolutional network: forward, backward, "
        f"masked step. Every {plan.selected:,} steps the saliency is measured anew and half of the "
        f"weights selected, the mask going through a file; every {plan.returned:,} steps state and "
        "mask go through a sealed file into a new optimizer (of a compiled step: the same one)."
    )


def _legend() -> str:
    return (
        "Sampled after a garbage collection, from when everything had happened twice. Growth: from "
        "the first quarter of the samples to the last, by medians. Flat: not one tensor more, at "
        f"most {ALLOWED_BYTES / _MEGABYTE:.1f} MB and {ALLOWED_OBJECTS} Python objects, the "
        "samples themselves among them. Tensors and objects are counted from when a way began; "
        "each way runs in a process of its own."
    )


def _on_the_way(found: Found) -> str:
    samples = next(iter(found.values()))
    last = len(samples) - 1
    chosen = [round(column * last / (COLUMNS - 1)) for column in range(COLUMNS)]
    header = ["way", *(f"{samples[index].step:,}" for index in chosen)]
    rows = [
        [way.name, *(f"{series[index].resident / _MEGABYTE:,.1f}" for index in chosen)]
        for way, series in found.items()
    ]
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|---|" + "---:|" * (len(header) - 1)
    first, *rest = (f"| {' | '.join(row)} |" for row in (header, *rows))
    return "\n".join([first, rule, *rest])
