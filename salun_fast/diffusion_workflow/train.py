"""Training a small class-conditional diffusion model: the model that is to forget."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from salun_fast import workflow
from salun_fast._extras import need
from salun_fast.data import ImageData, load_images
from salun_fast.diffusion_config import DDPMTrainConfig
from salun_fast.diffusion_records import step_record
from salun_fast.diffusion_workflow import kept
from salun_fast.diffusion_workflow.ddpm import Bench
from salun_fast.diffusion_workflow.picture_data import class_data
from salun_fast.diffusion_workflow.sampling import Sampling, class_pictures
from salun_fast.methods.ddpm import train_ddpm
from salun_fast.methods.diffusion import DiffusionTrainResult
from salun_fast.methods.diffusion_settings import StepSettings
from salun_fast.methods.loop import repeatable
from salun_fast.methods.settings import override
from salun_fast.report.diffusion.page import write_diffusion_report
from salun_fast.report.grid import Panel, grid
from salun_fast.report.pictures import write_png
from salun_fast.run import RunFolder

COMMAND = "train ddpm"
PICTURE = "samples.png"
LEVELS = 3  # resolutions of the UNet that is built where none is described


def train_ddpm_run(
    config: DDPMTrainConfig, folder: RunFolder, *, resume: bool = False
) -> DiffusionTrainResult:
    """Train a UNet on all training images, or on all but those of ``leave_out``."""
    settings = override(StepSettings(), config.train)
    config = replace(config, unet=_described(config), train=asdict(settings))
    pipeline = _untrained(config)
    left_out = config.leave_out
    bench = None if left_out is None else Bench.of(config, pipeline, left_out)
    data = _data(config, pipeline) if bench is None else bench.data
    sampling = Sampling.of(config)
    with kept.begun(folder, COMMAND, config, resume=resume):
        result = train_ddpm(
            pipeline.unet,
            pipeline.scheduler,
            data.train if bench is None else bench.retain,
            seed=config.seed,
            run_dir=folder.path,
            resume=resume,
            on_step=kept.logging(folder),
            **config.train,
        )
    folder.write_config(COMMAND, config)
    kept.save_result(folder, pipeline, result)
    steps = [step_record(found) for found in result.history]
    if bench is None:
        folder.write_metrics(steps)
        _show(folder, pipeline, result, data, sampling)
    else:
        folder.write_metrics([*steps, bench.record(folder, "retrain", result.unet, result)])
        write_diffusion_report([folder.path], folder.report_file)
    return result


def _untrained(config: DDPMTrainConfig) -> Any:
    """A pipeline whose UNet is initialised by ``seed``."""
    from salun_fast.diffusion.class_pipeline import ClassConditionalPipeline

    diffusers = need("diffusers", "training a diffusion model", extra="diffusion")
    device = workflow.chosen_device(config)
    with repeatable(config.seed, device):
        unet = _built(diffusers.UNet2DModel, "unet", dict(config.unet))
    scheduler = _built(diffusers.DDPMScheduler, "scheduler", dict(config.scheduler))
    return ClassConditionalPipeline(unet.to(device), scheduler)


def _described(config: DDPMTrainConfig) -> dict[str, Any]:
    """UNet2DModel's arguments: small, and as the data want it, where they are not given."""
    given = dict(config.unet)
    side = given.get("sample_size")
    data = load_images(
        config.data, root=config.root, download=config.download, image_size=side or 32
    )
    multiple = 2 ** (LEVELS - 1)
    fitting = {
        "sample_size": -(-max(data.train.images.shape[2:]) // multiple) * multiple,
        "in_channels": data.channels,
        "num_class_embeds": data.num_classes + 1,
        "norm_num_groups": 8,
    }
    if not {"block_out_channels", "down_block_types", "up_block_types"} & given.keys():
        fitting |= {
            "block_out_channels": [32, 64, 64],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        }
    described = fitting | given
    return {"out_channels": described["in_channels"]} | described


def _built(kind: Any, name: str, arguments: dict[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name} does not describe a {kind.__name__} of diffusers: {reason}"
        ) from error


def _data(config: DDPMTrainConfig, pipeline: Any) -> ImageData:
    return class_data(config.data, pipeline.unet, root=config.root, download=config.download)


def _show(
    folder: RunFolder,
    pipeline: Any,
    result: DiffusionTrainResult,
    data: ImageData,
    sampling: Sampling,
) -> None:
    """A grid of what the trained model draws."""
    labels = range(min(data.num_classes, kept.MOST_ROWS))
    rows = [
        class_pictures(result.unet, pipeline.scheduler, c, kept.SHOWN, sampling) for c in labels
    ]
    picture = grid([Panel("trained", rows)], [data.classes[label] for label in labels])
    write_png(picture, folder.path / PICTURE)
