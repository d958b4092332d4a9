"""The denoising task: diffusers' own noise and targets, guidance, reductions, timesteps."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from salun_fast.diffusion.denoising import (
    Denoising,
    antithetic_timesteps,
    guided_prediction,
    reduced,
    uniform_timesteps,
)
from tests.diffusion.tiny import ddpm_scheduler

SAMPLERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)


def batch(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(count, 2, 4, 4, generator=generator) for _ in range(2))
    return clean, noise, torch.randint(100, (count,), generator=generator)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_and_targets_are_those_of_diffusers(schedule):
    clean, noise, timesteps = batch()
    theirs = ddpm_scheduler(beta_schedule=schedule)
    ours = Denoising(theirs)
    assert ours.timesteps == 100
    assert torch.equal(
        ours.noised(clean, noise, timesteps), theirs.add_noise(clean, noise, timesteps)
    )
    assert torch.equal(ours.target(clean, noise, timesteps), noise)
    velocity = Denoising(ddpm_scheduler(beta_schedule=schedule, prediction_type="v_prediction"))
    assert torch.equal(
        velocity.target(clean, noise, timesteps), theirs.get_velocity(clean, noise, timesteps)
    )


def test_the_velocity_is_the_papers_formula():
    clean, noise, timesteps = batch()
    scheduler = ddpm_scheduler(prediction_type="v_prediction")
    level = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    expected = level.sqrt() * noise - (1 - level).sqrt() * clean
    torch.testing.assert_close(Denoising(scheduler).target(clean, noise, timesteps), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_task_does_not_depend_on_the_sampler(sampler, kind):
    source = ddpm_scheduler(beta_schedule="scaled_linear", prediction_type=kind)
    other = getattr(diffusers, sampler).from_config(source.config)
    other.set_timesteps(7)  # where samplers would add noise at
    for clean, noise, timesteps in (batch(seed=1), batch(seed=2)):
        for name in ("noised", "target"):
            expected = getattr(Denoising(source), name)(clean, noise, timesteps)
            assert torch.equal(getattr(Denoising(other), name)(clean, noise, timesteps), expected)


def test_zero_terminal_noise_and_given_betas_are_kept():
    clean, noise, _ = batch()
    last = torch.full((6,), 99)
    zero = Denoising(ddpm_scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    torch.testing.assert_close(zero.noised(clean, noise, last), noise, atol=1e-3, rtol=0)
    betas = torch.linspace(0.01, 0.3, 100).tolist()
    given = ddpm_scheduler(trained_betas=betas)
    assert torch.equal(
        Denoising(given).noised(clean, noise, last), given.add_noise(clean, noise, last)
    )


def test_predicting_the_sample_is_refused_in_words():
    with pytest.raises(ValueError, match=r"prediction_type must be one of epsilon.*'sample'"):
        Denoising(ddpm_scheduler(prediction_type="sample"))


@pytest.mark.parametrize("wrong", [None, object(), "ddpm"])
def test_what_is_no_scheduler_is_refused(wrong):
    with pytest.raises(TypeError, match="must be a diffusers scheduler of discrete noise steps"):
        Denoising(wrong)


def test_a_flow_matching_scheduler_is_refused():
    with pytest.raises(TypeError, match="FlowMatchEulerDiscreteScheduler"):
        Denoising(diffusers.FlowMatchEulerDiscreteScheduler())


def test_guidance_on_a_linear_model_has_the_gradient_derived_by_hand():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    condition, nothing, target = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)
    w = 7.5
    said = guided_prediction(condition @ weight, nothing @ weight, w)
    (said - target).square().mean().backward()
    x = (1 + w) * condition - w * nothing  # the model is linear: guidance acts on its input
    by_hand = 2 / target.numel() * x.T @ (x @ weight.detach() - target)
    torch.testing.assert_close(weight.grad, by_hand)


def test_guidance_vanishes_where_the_null_condition_is_the_condition():
    said, target = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided_prediction(said, said, 7.5), said)
    guided = reduced(guided_prediction(said, said, 2.0), target, "mean")
    torch.testing.assert_close(guided, reduced(said, target, "mean"))


def test_no_guidance_is_the_conditional_prediction_to_the_bit():
    said, null = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guided_prediction(said, null, 0.0), said)


def test_reductions_differ_by_the_elements_of_a_sample():
    said, target = torch.randn(2, 4, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    mean, pixel_sum = (reduced(said, target, name) for name in ("mean", "pixel_sum"))
    torch.testing.assert_close(mean, torch.nn.functional.mse_loss(said, target))
    torch.testing.assert_close(pixel_sum, 2 * 3 * 5 * mean)


def test_half_precision_predictions_are_compared_in_fp32():
    said = torch.full((2, 1, 100, 100), 300.0, dtype=torch.float16)  # squares overflow fp16
    loss = reduced(said, torch.zeros_like(said), "pixel_sum")
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(300.0**2 * 100 * 100)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_antithetic_timesteps_come_in_pairs(count):
    timesteps = antithetic_timesteps(count, 1000, torch.Generator().manual_seed(3))
    assert timesteps.shape == (count,)
    assert timesteps.dtype == torch.int64
    pairs = count // 2
    first, second = timesteps[:pairs], timesteps[count - pairs :]
    assert torch.equal(first + second, torch.full((pairs,), 999))


def test_uniform_timesteps_reach_both_ends():
    timesteps = uniform_timesteps(2000, 10, torch.Generator().manual_seed(0))
    assert timesteps.unique().tolist() == list(range(10))
