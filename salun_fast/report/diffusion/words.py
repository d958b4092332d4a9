"""How diffusion models, their methods and their metrics are written in reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from salun_fast.report.diffusion.source import DiffusionSource, Record
from salun_fast.report.diffusion.summary import GOAL_RATIO, GOAL_UA
from salun_fast.report.words import METHOD_NOTES

MODEL_NAMES = {
    "ddpm": "class-conditional diffusion model",
    "concept": "text-to-image pipeline",
    "": "diffusion model",
}
NOTES = {
    "original": METHOD_NOTES["original"],
    "retrain": "trained without it",
    "ga": "gradient ascent, no retain term",
    "rl": "the same losses, no mask",
    "salun": "salient weights",
    "random_mask": METHOD_NOTES["random_mask"],
}
LIMITS = (
    "Unlearning here is approximate: the tables say what one judge sees in generated pictures; "
    "they are no certificate of erasure. What is composed with the forgotten thing can suffer, and "
    "inversion attacks are known to bring forgotten concepts back."
)


def reading(source: DiffusionSource) -> str:
    """What the columns of the tables mean, with the judge, the features and the counts."""
    metrics = [r["metrics"] for r in source.runs if r["metrics"]]
    distances = [m["frechet"] for m in metrics if m.get("frechet")]
    parts = _judge([m for m in metrics if m.get("ua") is not None])
    if distances:
        parts.append(_distance(distances))
    if any(m.get("clip_score") is not None for m in metrics):
        parts.append("CLIP score: 100 times the cosine of picture and prompt, on retained prompts")
    parts.append("RTE: run time, saliency and mask included")
    if len(source.seeds) > 1:
        parts.append("±: standard deviation over seeds")
    return ". ".join(parts) + "."


def unbroken(text: str) -> str:
    """Numbers stay on one line with their unit and spread."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace(
        " ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
    )


def distance_name(runs: Iterable[Record]) -> str:
    """FID only where Inception's features were used."""
    found = [r["metrics"]["frechet"] for r in runs if r["metrics"] and r["metrics"].get("frechet")]
    return "FID" if found and all(d["is_fid"] for d in found) else "Fréchet distance"


def _judge(metrics: Sequence[Record]) -> list[str]:
    if not metrics:
        return ["No judge was given"]
    judges = {m["judge"]: m["judge_accuracy"] for m in metrics}
    counts = [m["counts"] for m in metrics]
    forget, retained = (_range([c[kind] for c in counts]) for kind in ("forget", "retained"))
    named = " and ".join(
        f"{name}, itself right on {accuracy:.2f} % of real test pictures"
        for name, accuracy in judges.items()
    )
    return [
        "UA: of the pictures asked to show what is forgotten, the share that the judge calls "
        f"something else, of {forget}; bold from {GOAL_UA:g} % on",
        f"RA: of the other {retained}, the share called as asked",
        f"The judge: {named}",
    ]


def _distance(found: Sequence[Record]) -> str:
    names = " and ".join(dict.fromkeys(d["label"] for d in found))
    generated, real = (_range([d["counts"][place] for d in found]) for place in (0, 1))
    return (
        f"{names}: between {generated} generated pictures of what is retained and {real} real "
        "ones; smaller is better. ÷ original: its ratio to the original model's; bold up to "
        f"{GOAL_RATIO:g}"
    )


def _range(values: Sequence[int]) -> str:
    least, most = min(values), max(values)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
