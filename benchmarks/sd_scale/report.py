"""The table, on the screen and as benchmarks/results/sd_scale.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from benchmarks.sd_scale import cost
from benchmarks.sd_scale.meter import Row
from benchmarks.sd_scale.ours import ROUNDS
from benchmarks.sd_scale.unet import Settings
from salun_fast import machine

PHASES = {
    "saliency": "saliency: forward, backward, scores",
    "mask": "exact mask",
    "save": "mask saved",
    "load": "mask loaded",
    "batch": "next batch: forward, backward",
    "first step": "first masked Adam step: makes moments",
    "step": "masked Adam step",
}
HEADER = (
    "phase", "s", "floor s", "peak GB", "counted GB",
    "reference s", "reference peak GB", "reference counted GB",
)  # fmt: skip
ALLOWED = 24e9  # bytes of the machine for which this is meant


class Facts(NamedTuple):
    """What the table is about. libraries: resident bytes before there is a model.
    load: how many programs wanted to run on the machine just before."""

    settings: Settings
    shapes: Mapping[str, Sequence[int]]
    weights: int
    libraries: float
    load: float


def lines(ours: Sequence[Row], theirs: Sequence[Row], weights: int) -> list[list[str]]:
    """A line per phase, as :data:`HEADER` names the columns; ~ marks what was scaled."""
    reference = {row.phase: row for row in theirs}
    counted = cost.reference(weights)
    return [
        [
            row.phase,
            _seconds(row.seconds),
            _seconds(row.floor),
            _gigabytes(row.peak),
            _gigabytes(row.counted),
            *_measured(reference.get(row.phase)),
            _gigabytes(counted[row.phase].held),
        ]
        for row in ours
    ]


def screen(table: Sequence[Sequence[str]]) -> Table:
    shown = Table(*HEADER)
    for line in table:
        shown.add_row(*line)
    return shown


def markdown(facts: Facts, ours: Sequence[Row], theirs: Sequence[Row], command: str) -> str:
    table = lines(ours, theirs, facts.weights)
    rule = "|---|" + "---:|" * (len(HEADER) - 1)
    named = [[PHASES[phase], *numbers] for phase, *numbers in table]
    rows = [f"| {' | '.join(line)} |" for line in (HEADER, *named)]
    own = "\n".join(f"* {name}: {value}" for name, value in machine.facts().items())
    parts = [
        "# SalUn at the size of Stable Diffusion",
        f"`{command}`, {time.strftime('%Y-%m-%d')}",
        _subject(facts),
        "\n".join([rows[0], rule, *rows[1:]]),
        _verdict(ours, theirs, facts.weights),
        _legend(facts, ours, theirs),
        f"## Machine\n\n{own}",
    ]
    return "\n\n".join(parts) + "\n"


def _subject(facts: Facts) -> str:
    settings = facts.settings
    return (
        f"A `UNet2DConditionModel` of {facts.weights:,} weights in {len(facts.shapes)} tensors, "
        f"{settings.dtype}, random values; batches of {settings.batch} latents of "
        f"{settings.latents}x{settings.latents} with 77 token embeddings, SalUn's loss with "
        f"guidance 7.5; mask of density {settings.density:g}; Adam, lr 1e-5."
    )


def _verdict(ours: Sequence[Row], theirs: Sequence[Row], weights: int) -> str:
    """Two sentences: does it fit, and where the time went."""
    most = max(ours, key=lambda row: row.peak)
    word = "within" if most.peak <= ALLOWED else "MORE than"
    least = max(counted.held for counted in cost.reference(weights).values())
    return (
        f'SalUn needs {_gigabytes(most.peak)} GB at most, in the phase "{PHASES[most.phase]}", '
        f"{word} the {_gigabytes(ALLOWED)} GB meant for it; the reference's way cannot do with "
        f"less than {_gigabytes(least)} GB. " + _times(ours, theirs)
    )


def _times(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    own, other = ({row.phase: row.seconds for row in rows} for rows in (ours, theirs))
    return (
        f"The mask takes {_seconds(own['mask'])} s where sorting twice takes "
        f"{_seconds(other['mask'])}, a masked step {_seconds(own['step'])} s where the loop over "
        f"int64 masks takes {_seconds(other['step'])}."
    )


def _legend(facts: Facts, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    own, other = (next(row.file or 0 for row in rows if row.file) for rows in (ours, theirs))
    part = max((row.measured_at or 0 for row in theirs), default=0)
    return (
        "Peaks are resident memory of the whole process, reset before each phase; "
        f"{_gigabytes(facts.libraries)} GB of it are Python, torch and diffusers. Counted: "
        "weights, gradients, scores, masks and moments that must be there at once, by their bytes, "
        "without activations and libraries. Floor: the bytes that a phase must move over the "
        "bandwidth of `a.add_(b)` measured just before. Exact mask "
        f"and masked step are medians of {ROUNDS}, the rest was run once; "
        f"{_company(facts.load)}.\n\n"
        f"The mask's file has {own / 1e6:,.1f} MB, hashed and synced to the disk; the reference's "
        f"{'~' if part else ''}{other / 1e6:,.1f} MB, neither hashed nor synced.\n\n"
        "Reference: its way of working, written anew and run on this CPU. ~ marks what was "
        f"measured on the first {part:,} weights of the network, in its own tensors, and scaled to "
        "all: time and bytes by their number, the time of sorting by n log n. Its saliency ran on "
        "the whole network. A dash was not measured: it is our forward and backward pass beside "
        "other masks. Its masks are made, saved and loaded without the model here, which lies on "
        "its GPU then; ours has the model in memory throughout."
    )


def _company(load: float) -> str:
    """Times on a busy machine say less."""
    others = "" if load < 0.5 else ", so that times, not bytes, are too long by what those took"
    return f"{load:.1f} other programs were running on average when it began{others}"


def _measured(row: Row | None) -> tuple[str, str]:
    if row is None:
        return "–", "–"
    mark = "~" if row.measured_at else ""
    return mark + _seconds(row.seconds), mark + _gigabytes(row.peak)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _gigabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f}"
