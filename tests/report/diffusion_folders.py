"""Folders of diffusion runs as demos and commands leave them, with numbers chosen by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from salun_fast import config as configs
from salun_fast import diffusion_records as records
from salun_fast.report.animation import animation
from salun_fast.report.grid import Panel, grid

ROWS = ("Shirt", "Bag", "<b>Boot</b>")
BAG = "class 1 (Bag)"
SHIRT = "class 0 (Shirt)"
MACHINE = {"torch": "2.14.1", "processor": "Test CPU", "threads": 1}
SETTINGS = {"data": "fashion-mnist", "seeds": [0, 1], "own": {"ga": {"steps": 20}}}
JUDGE = "small CNN"


def metrics(ua: float, distance: float | None = 2.0, ra: float = 90.0) -> dict[str, Any]:
    """As metrics_record makes them; distance None: not measured."""
    frechet = None if distance is None else {
        "value": distance, "extractor": JUDGE, "counts": [900, 54000], "is_fid": False,
        "label": f"Fréchet distance, features of {JUDGE}",
    }  # fmt: skip
    return {
        "ua": ua, "ra": ra, "per_row": {ROWS[0]: ra, ROWS[1]: 100 - ua, ROWS[2]: ra},
        "frechet": frechet, "judge": JUDGE, "judge_accuracy": 92.25,
        "counts": {"forget": 500, "retained": 900},
    }  # fmt: skip


def run(
    method: str, seed: int, measured: dict[str, Any] | None, task: str = BAG, **changes: Any
) -> dict[str, Any]:
    """One run record; what was unlearned brings its costs, what has a mask mask and proof."""
    forgotten = [1] if task == BAG else [0]
    record = records.run_record(
        model="ddpm", task=task, method=method, seed=seed, rows=ROWS, forgotten=forgotten,
        samples=f"samples/{method}-{forgotten[0]}-{seed}.safetensors", metrics=measured,
    )  # fmt: skip
    if method not in records.YARDSTICKS:
        record |= {"overrides": {"lr": 1e-4, "steps": 30}, **_costs(method)}
    if method in ("salun", "random_mask"):
        record["overrides"]["density"] = 0.5
        record |= _masked()
    return record | changes


def _costs(method: str) -> dict[str, Any]:
    parts = ("forget",) if method == "ga" else ("forget", "retain")
    slope = {"salun": 0.9, "rl": 0.8}.get(method, 0.95)
    history = [
        {
            "step": step, "lr": 1e-4, "loss": 3.0, "grad_norm": 1.0, "seconds": 0.5,
            "parts": {part: (0.2 + place) * slope ** (step / 10)
                      for place, part in enumerate(parts)},
        }
        for step in (10, 20, 30)
    ]  # fmt: skip
    return {
        "seconds": {"saliency": 2.0, "select": 0.1, "train": 40.4, "total": 42.5},
        "peak_memory_mb": 512.0,
        "settings": {"steps": 30, "lr": 1e-4, "alpha": 1e-3},
        "history": history,
    }


def _masked() -> dict[str, Any]:
    layers = {"conv_in.weight": 0.25, "mid.<i>attn</i>.weight": 0.75}
    return {
        "mask": {
            "count": 500, "numel": 1000, "density": 0.5, "fingerprint": "f" * 64, "layers": layers,
        },
        "certificate": {
            "frozen": 500, "changed": 0, "digest_before": "a" * 64, "digest_after": "a" * 64,
            "holds": True,
        },
    }  # fmt: skip


def compared() -> list[dict[str, Any]]:
    """Two seeds. SalUn and the mask at random do not differ; gradient ascent ruins the rest."""
    return [
        run("original", 0, metrics(4.0, 2.0)),
        run("retrain", 0, metrics(97.5, 1.9)),
        *(run("salun", seed, metrics(ua, 2.1)) for seed, ua in enumerate((98.0, 99.0))),
        *(run("random_mask", seed, metrics(ua, 2.15)) for seed, ua in enumerate((97.5, 99.0))),
        *(run("rl", seed, metrics(ua, 2.3)) for seed, ua in enumerate((99.0, 99.5))),
        *(run("ga", seed, metrics(ua, 9.0, 20.0)) for seed, ua in enumerate((100.0, 100.0))),
    ]


def demo(folder: Path, runs: list[dict[str, Any]], *, films: bool = True) -> Path:
    """A demo's folder; the first SalUn run comes with an animation."""
    header = records.settings_record("ddpm", SETTINGS, MACHINE, command="salun-fast demo ddpm")
    for record in runs:
        _draw(folder, record)
    filmed = next((r for r in runs if r["method"] == "salun"), None)
    if filmed is not None and films:
        filmed |= {"animation": "samples/film.gif", "samples_steps": [0, 10, 30]}
        frames = [grid([Panel(f"step {s}", [_pictures(s)] * 3)], ROWS) for s in (0, 10, 30)]
        animation(frames, folder / "samples" / "film.gif")
    _write_lines(folder / "results.jsonl", [header, *runs])
    return folder


def run_folder(folder: Path, runs: list[dict[str, Any]], command: str = "unlearn ddpm") -> Path:
    """A run's folder, with its steps before the run records."""
    for record in runs:
        _draw(folder, record)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"command": command, "data": "digits", "seed": 0, "versions": {"torch": "2.14.1"}}
    files = configs.to_yaml(content | {"machine": MACHINE})
    (folder / configs.FILE).write_text(files)
    steps = [{"kind": "step", **line} for line in _costs("salun")["history"]]
    _write_lines(folder / "metrics.jsonl", [*steps, *runs])
    return folder


def _write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _draw(folder: Path, record: dict[str, Any]) -> None:
    images = torch.stack([_pictures(17 * row + len(record["method"])) for row in range(len(ROWS))])
    records.save_samples(folder / record["samples"], images)


def _pictures(value: int) -> torch.Tensor:
    """uint8 [3, 1, 8, 8]"""
    ramp = torch.arange(3 * 64, dtype=torch.int64).view(3, 1, 8, 8)
    return (ramp + 5 * value).remainder(256).to(torch.uint8)
