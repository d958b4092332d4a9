"""Which parameters a trainable set names, in diffusers' parameter names."""

import pytest

pytest.importorskip("diffusers")

from salun_fast.diffusion.trainable import trainable_names
from tests.diffusion.tiny import text_pipeline


@pytest.fixture(scope="module")
def unet():
    return text_pipeline().unet


def names_of(unet):
    return [name for name, _ in unet.named_parameters()]


def test_full_is_every_parameter_in_order(unet):
    assert trainable_names(unet, "full") == names_of(unet)


def test_xattn_and_selfattn_are_the_two_attentions(unet):
    cross, own = trainable_names(unet, "xattn"), trainable_names(unet, "selfattn")
    assert cross == [name for name in names_of(unet) if ".attn2." in name]
    assert own == [name for name in names_of(unet) if ".attn1." in name]
    assert any(name.endswith("attn2.to_k.weight") for name in cross)
    assert len(cross) == len(own) > 0


def test_noxattn_leaves_out_cross_attention_time_embedding_and_output(unet):
    left_out = set(names_of(unet)) - set(trainable_names(unet, "noxattn"))
    assert left_out == {
        name
        for name in names_of(unet)
        if ".attn2." in name or name.startswith(("time_embedding.", "conv_norm_out.", "conv_out."))
    }
    assert "time_embedding.linear_1.weight" in left_out
    assert any("time_emb_proj" in name for name in trainable_names(unet, "noxattn"))


def test_a_regular_expression_is_searched_in_names(unet):
    found = trainable_names(unet, r"^mid_block\..*attn[12]\.to_[kv]\.weight$")
    assert len(found) == 4
    assert trainable_names(unet, "to_q") == [n for n in names_of(unet) if "to_q" in n]


def test_an_invalid_expression_is_an_error_that_lists_the_sets(unet):
    with pytest.raises(ValueError, match=r"one of full, xattn, selfattn, noxattn or a regular"):
        trainable_names(unet, "attn2[")


def test_an_expression_that_fits_nothing_shows_names_that_would(unet):
    with pytest.raises(ValueError, match=r"'xatn' fits no parameter.*begin with 'conv_in"):
        trainable_names(unet, "xatn")


def test_only_parameters_that_require_a_gradient_count():
    unet = text_pipeline().unet
    unet.requires_grad_(False)
    unet.conv_in.bias.requires_grad_(True)
    assert trainable_names(unet, "full") == ["conv_in.bias"]
    unet.requires_grad_(False)
    with pytest.raises(ValueError, match=r"none: call unet.requires_grad_\(True\)"):
        trainable_names(unet, "full")


def test_of_an_adapted_unet_the_adapters_parameters_count():
    peft = pytest.importorskip("peft")
    unet = text_pipeline().unet
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    names = trainable_names(unet, "full")
    assert names
    assert all("lora_" in name for name in names)
    cross = trainable_names(unet, "xattn")
    assert cross == [name for name in names if ".attn2." in name]
    assert 0 < len(cross) < len(names)
