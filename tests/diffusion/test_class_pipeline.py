"""Class-conditional sampling, by diffusers' conventions."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from PIL import Image

from salun_fast import ClassConditionalPipeline
from tests.diffusion.tiny import CLASSES, Untouched, class_unet, ddpm_scheduler

STEPS = 4
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler")


def pipeline(scheduler="DDIMScheduler", **options):
    made = getattr(diffusers, scheduler).from_config(ddpm_scheduler(**options).config)
    found = ClassConditionalPipeline(unet=class_unet(), scheduler=made)
    found.set_progress_bar_config(disable=True)
    return found


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, labels, **options):
    options = {"num_inference_steps": STEPS, "output_type": "pt"} | options
    return pipe(labels, **options).images


def noise(count, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Recorded:
    """Passes the UNet's calls on and keeps their class labels and batch sizes."""

    def __init__(self, pipe):
        self.labels = []
        pipe.unet.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module, args, kwargs):
        self.labels.append(kwargs["class_labels"].tolist())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_gives_images_and_repeats_them_by_seed(scheduler):
    pipe = pipeline(scheduler)
    first, again = (draw(pipe, [0, 2], generator=seeded(7)[0]) for _ in range(2))
    assert first.shape == (2, 1, 8, 8)
    assert first.dtype == torch.float32
    assert 0.0 <= float(first.min()) <= float(first.max()) <= 1.0
    assert torch.equal(first, again)
    assert not torch.equal(first, draw(pipe, [0, 2], generator=seeded(8)[0]))


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_list_of_generators_makes_each_image_independent_of_its_batch(scheduler):
    pipe = pipeline(scheduler)
    together = draw(pipe, [0, 1, 2], generator=seeded(5, 6, 7))
    alone = draw(pipe, [1], generator=seeded(6))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_saved_and_loaded_it_draws_the_same_bits(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    loaded = ClassConditionalPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    ours, theirs = (draw(p, [2, 1], generator=seeded(3)[0]) for p in (pipe, loaded))
    assert torch.equal(ours, theirs)


def test_sampling_leaves_model_and_random_state_alone():
    pipe = pipeline("DDPMScheduler")
    untouched = Untouched(pipe.unet)
    draw(pipe, 1, generator=seeded(0)[0])
    untouched.check()


@pytest.mark.parametrize(("guidance_scale", "w"), [(3.0, 2.0), (0.0, -1.0), (8.5, 7.5)])
def test_the_scale_is_one_more_than_the_papers_w(guidance_scale, w):
    pipe = pipeline()
    sample, timestep = noise(2), torch.tensor(50)
    labels, null = torch.tensor([0, 2]), torch.full((2,), CLASSES)
    with torch.no_grad():
        said = pipe._predict(sample, timestep, labels, guidance_scale)
        conditional, unconditional = (
            pipe.unet(sample, timestep, class_labels=given).sample for given in (labels, null)
        )
    expected = (1 + w) * conditional - w * unconditional
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-5)


def test_scale_one_asks_for_the_condition_alone():
    pipe = pipeline()
    recorded = Recorded(pipe)
    draw(pipe, [0, 2], guidance_scale=1.0)
    assert recorded.labels == [[0, 2]] * STEPS
    recorded.labels.clear()
    draw(pipe, [0, 2], guidance_scale=2.0)
    assert recorded.labels == [[0, 2, CLASSES, CLASSES]] * STEPS


def test_sampling_with_scale_one_is_the_schedulers_loop_over_plain_predictions():
    pipe = pipeline()
    sample = noise(1)
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for timestep in pipe.scheduler.timesteps:
            said = pipe.unet(sample, timestep, class_labels=torch.tensor([1])).sample
            sample = pipe.scheduler.step(said, timestep, sample).prev_sample
    expected = (sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(draw(pipe, 1, guidance_scale=1.0, latents=noise(1)), expected)


def test_given_latents_take_the_place_of_the_noise():
    pipe = pipeline()
    one, same, other = (draw(pipe, [0], latents=noise(1, seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match=r"latents must be \[2, 1, 8, 8\], found \[1, 1, 8, 8\]"):
        draw(pipe, [0, 1], latents=noise(1))


def test_output_types_show_the_same_picture():
    pipe = pipeline()
    tensor, array, pictures = (
        draw(pipe, [0, 1], latents=noise(2), output_type=kind) for kind in ("pt", "np", "pil")
    )
    assert array.shape == (2, 8, 8, 1)
    assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), tensor)
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    assert pictures[0].size == (8, 8)
    (images,) = pipe([0], num_inference_steps=1, return_dict=False)
    assert len(images) == 1
    with pytest.raises(ValueError, match="output_type must be 'pil', 'np' or 'pt'"):
        draw(pipe, [0], output_type="latent")


LABELS = [1, [1], (1,), torch.tensor(1), torch.tensor([1], dtype=torch.uint8)]


@pytest.mark.parametrize("labels", LABELS)
def test_labels_come_as_a_number_a_list_or_a_tensor(labels):
    pipe = pipeline()
    assert torch.equal(draw(pipe, labels, latents=noise(1)), draw(pipe, 1, latents=noise(1)))


@pytest.mark.parametrize("labels", [CLASSES, -1, [0, 7], torch.tensor([0, CLASSES])])
def test_a_label_that_is_no_class_is_refused_the_null_class_included(labels):
    with pytest.raises(ValueError, match=r"class_labels must be classes 0\.\.2 of this model"):
        draw(pipeline(), labels)


@pytest.mark.parametrize("labels", [[], 1.5, [0.0], True, "cat", ["cat"], None])
def test_what_is_no_label_is_refused(labels):
    with pytest.raises(ValueError, match=r"class_labels must be one class 0\.\.2, or a list"):
        draw(pipeline(), labels)


def test_too_few_or_too_many_generators_are_refused():
    for generators in (seeded(0), seeded(0, 1, 2)):
        with pytest.raises(ValueError, match=r"one per image \(2\), found"):
            draw(pipeline(), [0, 1], generator=generators)


def test_a_unet_without_class_embedding_is_refused_in_words():
    plain = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
    )
    pipe = ClassConditionalPipeline(unet=plain, scheduler=ddpm_scheduler())
    with pytest.raises(ValueError, match="the UNet must have a class embedding"):
        pipe(0)
