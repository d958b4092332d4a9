"""The text of benchmarks/results/whole_run.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.sd_scale.meter import Row
from benchmarks.whole_run.agreement import Agreement
from benchmarks.whole_run.ours import WAYS
from benchmarks.whole_run.phases import PHASES, REFERENCE, counted
from benchmarks.whole_run.subject import Settings
from benchmarks.whole_run.variants import Variant
from salun_fast import machine

DEFAULTS, *_ = WAYS


class Findings(NamedTuple):
    """ways: the rows of each. disk: bytes of all ten masks; one: of the one that is used.
    libraries: bytes resident before there is a model. load: programs that wanted to run before."""

    ways: Mapping[str, Sequence[Row]]
    disk: Mapping[str, int]
    one: Mapping[str, int]
    agreements: Sequence[Agreement]
    variants: Sequence[Variant]
    shares: Mapping[str, float]
    readout: float
    libraries: float
    load: float


def markdown(settings: Settings, found: Findings, command: str, plot: str) -> str:
    own = "\n".join(f"* {name}: {value}" for name, value in machine.facts().items())
    parts = [
        "# Whole runs",
        f"`{command}`, {time.strftime('%Y-%m-%d')}",
        _subject(settings, found),
        f"![seconds, peak memory and mask files of each way]({plot})",
        _verdict(found),
        "## Phase by phase",
        _phases(found),
        _legend(found),
        "## The same result",
        _agreements(found),
        "## Where the time goes",
        _shares(found),
        "## One setting at a time",
        _variants(found),
        f"## Machine\n\n{own}",
    ]
    return "\n\n".join(parts) + "\n"


def _subject(settings: Settings, found: Findings) -> str:
    return (
        f"ResNet-18 of width {settings.width}, {found.agreements[0].of:,} weights, on "
        f"{settings.data} in 32x32: it forgets {settings.forget:,} images and keeps "
        f"{settings.retain:,}. Random labels under a mask of density {settings.density:g}, SalUn's "
        f"sequential way, one epoch, that is {settings.steps} steps of {settings.batch_size} "
        f"images, {settings.threads} threads. Every way in a process of its own."
    )


def _total(found: Findings, way: str) -> float:
    return sum(row.seconds for row in counted(way, found.ways[way]))


def _like(found: Findings, way: str) -> float:
    """Seconds without the nine other densities."""
    return sum(row.seconds for row in found.ways[way] if row.phase != "others")


def _peak(found: Findings, way: str) -> float:
    return max(row.peak for row in found.ways[way])


def _verdict(found: Findings) -> str:
    reference = _total(found, REFERENCE)
    ratios = [
        f"{reference / _total(found, way):.2f} times as fast ({way})"
        for way in found.ways
        if way != REFERENCE
    ]
    return (
        f"From the saliency to the unlearned model: {', '.join(ratios)} as the reference's way, "
        f"{_seconds(reference)} s. Without its nine masks that nobody asked for "
        f"{_like(found, REFERENCE) / _like(found, DEFAULTS):.2f} times. Its mask files take "
        f"{found.disk[REFERENCE] / found.one[DEFAULTS]:,.0f} times the disk, "
        f"{found.one[REFERENCE] / found.one[DEFAULTS]:.0f} times mask for mask."
    )


def _phases(found: Findings) -> str:
    ways = list(found.ways)
    seconds = {way: {row.phase: row.seconds for row in found.ways[way]} for way in ways}
    lines = [
        [f"{words}, s", *(_seconds(seconds[way][phase]) for way in ways)]
        for phase, words in PHASES.items()
        if phase != "others"
    ]
    lines += [
        ["**together, s**", *(f"**{_seconds(_like(found, way))}**" for way in ways)],
        [f"{PHASES['others']}, s", *(_seconds(seconds[way]["others"]) for way in ways)],
        ["peak memory, GB", *(f"{_peak(found, way) / 1e9:.2f}" for way in ways)],
        ["file of the mask, MB", *(_megabytes(found.one[way]) for way in ways)],
        ["files of ten masks, MB", *(_megabytes(found.disk[way]) for way in ways)],
    ]
    return _table(["", *ways], lines)


def _legend(found: Findings) -> str:
    busy = "" if found.load < 0.5 else ", so that times are too long by what those took"
    return (
        f"The reference: its way of working, written anew: gradients summed beside the model, all "
        "scores sorted twice for each of ten densities, int64 masks in ten files, gradients times "
        "mask in a loop, torch's SGD with its defaults, then frozen weights put back from a clone "
        "and their momentum cleared. Same model, images, labels, order of batches, threads and "
        "kernels of torch. What differs beside SalUn itself: we keep images and convolutions "
        "channels last, hash and sync files, check gradients for NaN, and certify the frozen "
        "weights; the reference does none of it. Neither judges the model on the way: our live "
        f"readout, left out here, would look at all {found.readout:.3g} s long after each epoch "
        "(at most 2,000 images of each set).\n\n"
        "The phases come in the order of the table, the other densities before the mask is read; "
        "saliency is measured in fp32 whatever the precision. keep_memory begins with the "
        f"unlearning. Peaks are resident memory of the whole process, {found.libraries / 1e9:.2f} "
        "GB of it Python, torch and the images. "
        f"{found.load:.1f} other programs were running on average when it began{busy}."
    )


def _agreements(found: Findings) -> str:
    lines = [
        [
            each.way,
            f"{each.mask:,} of {each.of:,}",
            f"{each.apart:.2g}",
            *(f"{share:.1f}" for share in (each.ua, each.ra, each.ta)),
        ]
        for each in found.agreements
    ]
    header = ["way", "mask bits that differ", "weights apart", "UA %", "RA %", "TA %"]
    return (
        _table(header, lines)
        + "\n\nWeights apart: norm of the difference from the reference's weights over the norm of "
        "what unlearning changed in them. Convolutions in another layout round otherwise, so that "
        "scores at the cut change sides."
    )


def _shares(found: Findings) -> str:
    total = sum(found.shares.values())
    lines = [
        [kind, f"{seconds * 1e3:,.0f}", f"{seconds / total:.1%}"]
        for kind, seconds in found.shares.items()
    ]
    return (
        _table(["op", "ms", "share"], lines)
        + "\n\nOne whole run of a single step by torch's profiler, defaults: copies of the model, "
        "the certificate's comparison and the step's own bookkeeping are in the last line."
    )


def _variants(found: Findings) -> str:
    base = found.variants[0]
    lines = [
        [
            each.name,
            _seconds(each.seconds),
            f"{base.seconds / each.seconds:.2f}x",
            _seconds(each.first),
            f"{each.peak / 1e9:.2f}",
        ]
        for each in found.variants
    ]
    header = ["setting", "s per step", "against the defaults", "first step, s", "peak GB"]
    return (
        _table(header, lines)
        + "\n\nMedians of the steps after the first, each variant in its own process. The layouts "
        "and bf16 round otherwise; keep_memory has the same bits. Compiling is no setting of "
        "salun-fast: the model is passed compiled."
    )


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|---|" + "---:|" * (len(header) - 1)
    head, *rows = (f"| {' | '.join(line)} |" for line in (header, *lines))
    return "\n".join([head, rule, *rows])


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}"
