"""Tiny diffusion models and data, so that whole methods run in fractions of a second."""

from __future__ import annotations

import torch

from salun_fast.data import ImageSet, load_images
from tests.conftest import same_bytes

CLASSES = 3
SIDE = 16  # of the text pipeline's pictures: 8 x 8 latents
FORGET, REPLACEMENT, RETAIN = "a photo of a cat", "a photo of a dog", "a photo of a boat"
LONG = " ".join(["cat"] * 30)  # over the tokenizer's limit of 16


def class_unet(*, seed=0, classes=CLASSES, dropout=0.0, channels=1):
    """``UNet2DModel`` of some thousand weights for 8 x 8 images; the last embedding is null."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            num_class_embeds=classes + 1,
            dropout=dropout,
        ).eval()


def ddpm_scheduler(**options):
    from diffusers import DDPMScheduler

    return DDPMScheduler(**{"num_train_timesteps": 100, **options})


def digits(*classes, count=10):
    """uint8 [n, 1, 8, 8]: the first ``count`` digits of each class."""
    train = load_images("digits").train
    chosen = [
        index
        for label in classes
        for index in (train.labels == label).nonzero().flatten()[:count].tolist()
    ]
    return ImageSet(train.images[chosen], train.labels[chosen])


def pictures(count, seed=0):
    """uint8 [n, 3, 16, 16] of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.int32).byte()


def text_pipeline(*, seed=0, dropout=0.0, scheduler=None):
    """A ``StableDiffusionPipeline`` from configs, with a safety checker's place left empty."""
    from diffusers import StableDiffusionPipeline

    from salun_fast.demo.small_pipeline import build_tokenizer

    tokenizer = build_tokenizer([FORGET, REPLACEMENT, RETAIN])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_text_unet(dropout),
            scheduler=scheduler or ddpm_scheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    ).eval()


def _text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            projection_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def _text_unet(dropout):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        dropout=dropout,
    ).eval()


class Untouched:
    """What a run must leave alone, as it was when this was made."""

    def __init__(self, *models):
        self._models = models
        self._before = [self._facts(model) for model in models]
        self._random_state = torch.get_rng_state()

    def check(self):
        assert torch.equal(self._random_state, torch.get_rng_state())
        for model, before in zip(self._models, self._before, strict=True):
            now = self._facts(model)
            assert now.keys() == before.keys()
            for key, value in before.items():
                tensors = torch.is_tensor(value)
                assert same_bytes(value, now[key]) if tensors else value == now[key], key

    @staticmethod
    def _facts(model):
        facts = {f"weight {n}": v.clone() for n, v in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            facts[f"open {name}"] = parameter.requires_grad
            facts[f"grad {name}"] = parameter.grad is None
        for name, module in model.named_modules():
            facts[f"mode {name}"] = module.training
            hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            facts[f"hooks {name}"] = [len(found) for found in hooks]
        return facts


def gradients(model, loss):
    """The gradient of ``loss`` by parameter name, zeros where it reaches none."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if grad is None else grad
        for (name, p), grad in zip(parameters.items(), found, strict=True)
    }


def moments(run_dir):
    """Adam's first moments in a run's checkpoint, by parameter name: after one step 0.1 g."""
    content = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)
    state, (group,) = content["optimizer"]["state"], content["optimizer"]["param_groups"]
    pairs = zip(group["param_names"], group["params"], strict=True)
    return {name: state[index]["exp_avg"] for name, index in pairs if index in state}


def scaled(grads, factor):
    return {name: grad * factor for name, grad in grads.items()}


def norm_of(grads):
    return torch.cat([grad.flatten() for grad in grads.values()]).norm()


def assert_same_tensors(found, expected, *, atol=1e-6, rtol=1e-3):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_frozen(before, after, mask):
    """Every weight outside the mask, and every parameter without entry in it, kept its bits."""
    now = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        frozen = ~mask[name] if name in mask else torch.ones_like(weight, dtype=torch.bool)
        assert same_bytes(weight[frozen], now[name][frozen]), name


def moved(before, after):
    """Names of the parameters of which any weight changed."""
    now = dict(after.named_parameters())
    return {name for name, p in before.named_parameters() if not same_bytes(p, now[name])}


def probing(module):
    """Whether this call only asks what a UNet predicts: in eval mode and without gradient."""
    return not (module.training or torch.is_grad_enabled())
