"""``demo concept``: forget an object and a style of a small text-to-image pipeline, by prompt."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_fast import diffusion_records as records
from salun_fast.data import ImageSet, load_images
from salun_fast.demo.captioned import STYLES, CaptionedSet, captioned, prompt
from salun_fast.demo.concept_weights import load_concept, load_facts
from salun_fast.demo.drawing import drawn
from salun_fast.demo.jobs import Comparison, run_jobs
from salun_fast.demo.judges import Judges
from salun_fast.diffusion.draws import seed_of
from salun_fast.evaluation.accuracy import accuracy
from salun_fast.evaluation.features import classifier_features
from salun_fast.evaluation.frechet import RealFeatures
from salun_fast.experiment.log import OnRecord, Record
from salun_fast.methods.concept import ConceptResult, unlearn_concept, with_unet
from salun_fast.report.film import film

JUDGE = "two small CNNs, of objects and of styles"
SHOWN = 6  # pictures per prompt in the grid
SHOWN_OBJECTS = 3  # in every style, the forgotten one among them
FRAMES, SHOWN_IN_FRAMES = 8, 3


@dataclass(frozen=True)
class Forgotten:
    """One task: ``name`` of an object or style, and what is drawn instead. kind: "object" or
    "style"."""

    kind: str
    name: str
    replacement: str

    @property
    def title(self) -> str:
        return f"{self.kind} '{self.name}'"

    def check(self, words: Sequence[str]) -> None:
        """Raise ValueError for an object or a style that the pipeline does not draw."""
        known = list(words) if self.kind == "object" else list(STYLES)
        for name in (self.name, self.replacement):
            if name not in known:
                raise ValueError(f"{self.kind}s must be of {', '.join(known)}, found {name!r}")

    def indices(self, pictures: CaptionedSet) -> Tensor:
        """bool [n]: the pictures that show it."""
        if self.kind == "object":
            return pictures.objects == pictures.object_words.index(self.name)
        return pictures.styles == list(STYLES).index(self.name)

    def replaced(self, pictures: CaptionedSet) -> list[str]:
        """The captions with the replacement in the place of what is forgotten."""
        names, words = tuple(STYLES), pictures.object_words
        pairs = zip(pictures.objects.tolist(), pictures.styles.tolist(), strict=True)
        if self.kind == "object":
            return [prompt(self.replacement, names[style]) for _, style in pairs]
        return [prompt(words[thing], self.replacement) for thing, _ in pairs]


@dataclass(frozen=True)
class ConceptDemo(Comparison):
    """One comparison; the models are those of ``concept_weights``.

    objects, styles: pairs (forgotten, drawn instead). images: real pictures used of what is
    forgotten and of the rest, at most. per_caption: pictures drawn for each caption for the
    judges.
    """

    objects: tuple[tuple[str, str], ...] = ()
    styles: tuple[tuple[str, str], ...] = ()
    images: int = 800
    per_caption: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise ValueError("objects or styles must hold at least one pair")

    @property
    def tasks(self) -> list[Forgotten]:
        kinds = {"object": self.objects, "style": self.styles}
        return [Forgotten(kind, *_pair(pair)) for kind, pairs in kinds.items() for pair in pairs]


def _pair(given: tuple[str, ...]) -> tuple[str, str]:
    if len(given) != 2 or given[0] == given[1]:
        raise ValueError(f"expected a pair (forgotten, drawn instead), found {given}")
    return given[0], given[1]


@dataclass(frozen=True)
class Job:
    """One run: a method, or the original, on a task."""

    task: Forgotten
    method: str
    seed: int


def run_concept_demo(
    settings: ConceptDemo,
    folder: str | os.PathLike[str],
    *,
    command: str | None = None,
    on_record: OnRecord | None = None,
) -> list[Record]:
    """Run what is missing of the comparison; killed at any moment, the same call goes on."""
    path = Path(folder)
    words = load_facts(settings.models)["objects"]
    jobs = []
    for task in settings.tasks:
        task.check(words)
        jobs.append(Job(task, "original", settings.seeds[0]))
        jobs += [Job(task, method, seed) for seed in settings.seeds for method in settings.methods]
    return run_jobs(
        "concept",
        settings,
        path,
        jobs,
        lambda job: (job.task.title, job.method, job.seed),
        partial(_execute, settings, path),
        command=command,
        on_record=on_record,
    )


@dataclass(frozen=True)
class _Bench:
    """What every job of a process shares. real: features by caption (object · styles + style)."""

    pictures: CaptionedSet
    pipeline: Any
    judges: Judges
    judge_accuracy: float
    real: RealFeatures


@functools.lru_cache(maxsize=1)
def _bench(data: str, root: str | None, models: str, device: str) -> _Bench:
    pictures = captioned(load_images(data, root=root))
    pipeline, judges, facts = load_concept(models, device)
    real = ImageSet(pictures.images, _captions(pictures))
    return _Bench(
        pictures,
        pipeline,
        judges,
        facts["percent_as_captioned"]["real_test"]["both"],
        RealFeatures.of(classifier_features(judges.objects, "the judge of objects"), real),
    )


def _captions(pictures: CaptionedSet) -> Tensor:
    """int64 [n]: a number for each pair of object and style."""
    return pictures.objects * len(STYLES) + pictures.styles


def _execute(settings: ConceptDemo, folder: Path, job: Job) -> Record:
    bench = _bench(settings.data, settings.root, settings.models, settings.device)
    rows = _rows(job.task, bench.pictures.object_words)
    frames: list[tuple[int, Tensor]] = []
    result, pipeline = None, bench.pipeline
    if job.method != "original":
        result = _unlearned(settings, bench, job, rows, frames)
        pipeline = result.pipeline
    stem = f"samples/{job.method}-{job.task.kind}-{job.task.name}-{job.seed}"
    records.save_samples(folder / f"{stem}.safetensors", _shown(pipeline, rows, bench, SHOWN))
    labels = [label for label, _, _ in rows]
    if frames:
        film(folder / f"{stem}.gif", frames, labels, _outlined(job.task, rows, bench))
    return records.run_record(
        model="concept",
        task=job.task.title,
        method=job.method,
        seed=job.seed,
        rows=labels,
        forgotten=_outlined(job.task, rows, bench),
        samples=f"{stem}.safetensors",
        metrics=_metrics(settings, bench, job, pipeline),
        result=result,
        overrides=records.told(result),
        animation=f"{stem}.gif" if frames else None,
        samples_steps=[step for step, _ in frames],
    )


def _unlearned(
    settings: ConceptDemo,
    bench: _Bench,
    job: Job,
    rows: Sequence[tuple[str, int, int]],
    frames: list[tuple[int, Tensor]],
) -> ConceptResult:
    shows = job.task.indices(bench.pictures)
    forget = _some(bench.pictures, shows, settings.images)
    retain = _some(bench.pictures, ~shows, settings.images)
    options = settings.settings_of(job.method)

    def snapshot(step: int, unet: nn.Module) -> None:
        pipeline = with_unet(bench.pipeline, unet)
        frames.append((step, _shown(pipeline, rows, bench, SHOWN_IN_FRAMES)))

    filmed = job.method == "salun" and job.seed == settings.seeds[0]
    return unlearn_concept(
        bench.pipeline,
        forget.images,
        retain.images,
        forget_prompt=forget.prompts,
        replacement_prompt=job.task.replaced(forget),
        retain_prompts=retain.prompts,
        method=job.method,
        preset=settings.preset,
        seed=job.seed,
        progress=False,
        on_snapshot=snapshot if filmed else None,
        snapshot_every=max(int(options["steps"]) // FRAMES, 1),
        **options,
    )


def _some(pictures: CaptionedSet, which: Tensor, count: int) -> CaptionedSet:
    """At most ``count`` of them, the same ones at every call."""
    indices = which.nonzero().flatten()
    generator = torch.Generator().manual_seed(0)
    return pictures.subset(indices[torch.randperm(len(indices), generator=generator)[:count]])


def _metrics(settings: ConceptDemo, bench: _Bench, job: Job, pipeline: Any) -> Record:
    """UA: of pictures asked for by forget prompts, those that do not show what is forgotten. RA:
    of the others, those with the object and the style asked for."""
    words = bench.pictures.object_words
    made = drawn(
        pipeline, words, per_caption=settings.per_caption, seed=seed_of(job.seed, "judged")
    )
    things, styles = bench.judges.verdict(made.images)
    forgotten = job.task.indices(made)
    said = CaptionedSet(made.images, things, styles, words)
    right = (things == made.objects) & (styles == made.styles)
    kept = made.subset((~forgotten).nonzero().flatten())
    captions = _captions(kept)
    return {
        "ua": 100.0 - _share(job.task.indices(said)[forgotten]),
        "ra": _share(right[~forgotten]),
        "per_row": _per_row(made, said),
        "frechet": bench.real.distance(kept.images, sorted(set(captions.tolist()))).as_dict(),
        "judge": JUDGE,
        "judge_accuracy": bench.judge_accuracy,
        "counts": {"forget": int(forgotten.sum()), "retained": len(kept)},
    }


def _per_row(made: CaptionedSet, said: CaptionedSet) -> dict[str, float]:
    """Percent of the pictures asked for with an object, or in a style, that have it."""
    shares = {
        word: accuracy(said.objects[made.objects == i], made.objects[made.objects == i])
        for i, word in enumerate(made.object_words)
    }
    return shares | {
        f"{style} (style)": accuracy(said.styles[made.styles == i], made.styles[made.styles == i])
        for i, style in enumerate(STYLES)
    }


def _share(true: Tensor) -> float:
    return 100.0 * float(true.double().mean())


def _rows(task: Forgotten, words: Sequence[str]) -> list[tuple[str, int, int]]:
    """(prompt, object, style) per row of the grid: some objects in every style, what is forgotten
    and what replaces it among them."""
    first = [words.index(w) for w in (task.name, task.replacement) if w in words]
    chosen = [*first, *(i for i in range(len(words)) if i not in first)][:SHOWN_OBJECTS]
    return [
        (prompt(words[thing], style), thing, number)
        for thing in chosen
        for number, style in enumerate(STYLES)
    ]


def _outlined(task: Forgotten, rows: Sequence[tuple[str, int, int]], bench: _Bench) -> list[int]:
    things, styles = (torch.tensor([row[place] for row in rows]) for place in (1, 2))
    asked = CaptionedSet(torch.empty(0), things, styles, bench.pictures.object_words)
    return task.indices(asked).nonzero().flatten().tolist()


def _shown(
    pipeline: Any, rows: Sequence[tuple[str, int, int]], bench: _Bench, count: int
) -> Tensor:
    """uint8 [rows, count, 3, h, w]; the same seeds for every model."""
    words = bench.pictures.object_words
    things = sorted({thing for _, thing, _ in rows})
    made = drawn(pipeline, [words[thing] for thing in things], per_caption=count)
    images = made.images.view(len(things), len(STYLES), count, *made.images.shape[1:])
    return torch.stack([images[things.index(thing), style] for _, thing, style in rows])
