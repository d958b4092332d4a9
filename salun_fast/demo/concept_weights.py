"""The weights of the concept demo: how they are made, where they lie, how they are loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from salun_fast import files
from salun_fast.data import load_images
from salun_fast.demo.captioned import captioned
from salun_fast.demo.drawing import GUIDANCE_SCALE, SAMPLING_STEPS, drawn
from salun_fast.demo.judges import Judges, load_judges, train_judges
from salun_fast.demo.train_pipeline import PipelineTraining, train_pipeline
from salun_fast.diffusion import pipelines

if TYPE_CHECKING:
    import os

    from diffusers import StableDiffusionPipeline

SHIPPED = Path(__file__).parent / "weights" / "concept"
FACTS_FILE = "facts.json"
PIPELINE = "pipeline"
JUDGE_EPOCHS = 6
PICTURES_PER_CAPTION = 10  # by which the finished pipeline is judged


def train_concept_weights(
    folder: str | os.PathLike[str],
    *,
    data: str = "fashion-mnist",
    root: str | None = None,
    seed: int = 0,
    settings: PipelineTraining | None = None,
    judge_epochs: int = JUDGE_EPOCHS,
    per_caption: int = PICTURES_PER_CAPTION,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything from the data to a folder like the shipped one, once; returns its facts.

    The folder, made if missing, gets ``pipeline/`` by ``save_pretrained`` in fp16, both judges and
    ``facts.json``: settings, seconds, and how often the judges agree with the captions of real
    test pictures and of the pictures that the saved pipeline draws.
    """
    settings = settings or PipelineTraining()
    target = Path(folder)
    if (target / FACTS_FILE).is_file():
        made: dict[str, Any] = json.loads((target / FACTS_FILE).read_text(encoding="utf-8"))
        return made
    target.mkdir(parents=True, exist_ok=True)
    images = load_images(data, root=root)
    pictures = captioned(images)
    seconds: dict[str, float] = {}
    with _timed(seconds, "judges"):
        judges = train_judges(pictures, epochs=judge_epochs, seed=seed, progress=progress)
    judges.save(target)
    with _timed(seconds, "pipeline"):
        pipeline = train_pipeline(pictures, settings, seed=seed, progress=progress)
    pipelines.save_half(pipeline, target / PIPELINE)
    words = pictures.object_words
    generated = drawn(_loaded(target), words, per_caption=per_caption, seed=seed + 1)
    facts = {
        "data": data,
        "seed": seed,
        "objects": list(words),
        "settings": asdict(settings) | {"judge_epochs": judge_epochs},
        "sampling": {"guidance_scale": GUIDANCE_SCALE, "steps": SAMPLING_STEPS},
        "seconds": seconds,
        "judged_pictures": len(generated),
        "percent_as_captioned": {
            "real_test": asdict(judges.agreement(captioned(images, part="test"))),
            "generated": asdict(judges.agreement(generated)),
        },
    }
    files.write_text(target / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
    return facts


def load_concept(
    folder: str | os.PathLike[str] = SHIPPED, device: str = "cpu"
) -> tuple[StableDiffusionPipeline, Judges, dict[str, Any]]:
    """Pipeline in fp32, judges and facts of a folder of :func:`train_concept_weights`; the models
    on ``device``.

    Raises FileNotFoundError where one of them is missing.
    """
    path, facts = Path(folder), load_facts(folder)
    judges = load_judges(path, len(facts["objects"]))
    judges.objects.to(device)
    judges.styles.to(device)
    return _loaded(path, device), judges, facts


def load_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """How the weights of a folder were made; FileNotFoundError where there are none."""
    path = Path(folder) / FACTS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no concept weights ({FACTS_FILE} is missing); make them with "
            "salun-fast demo concept --train"
        )
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _loaded(folder: Path, device: str = "cpu") -> Any:
    return pipelines.load(folder / PIPELINE, torch.device(device))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 1)
