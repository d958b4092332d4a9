"""A11: names are found under the prefixes of wrappers; patterns select, misspelt ones say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_fast import names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("_orig_mod.module.fc.weight", "fc.weight"),
        ("layer1._orig_mod.0.weight", "layer1.0.weight"),
        ("model.diffusion_model.out.2.bias", "out.2.bias"),
        ("module.model.diffusion_model.out.2.bias", "out.2.bias"),
        ("_fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "a.b"),
        ("model.weight", "model.weight"),
        ("submodule.weight", "submodule.weight"),
        ("module.", "module."),
        ("_orig_mod", "_orig_mod"),
        ("weight", "weight"),
        ("", ""),
    ],
)
def test_a11_canonical_names_lose_the_prefixes_of_wrappers(name: str, expected: str):
    assert names.canonical(name) == expected
    assert names.canonical(expected) == expected


def test_a11_wrapped_models_match_their_bare_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    bare = [name for name, _ in model.named_parameters()]
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        found = [name for name, _ in wrapped.named_parameters()]
        assert found != bare
        assert names.match(found, bare) == dict(zip(found, bare, strict=True))
        assert names.match(bare, found) == dict(zip(bare, found, strict=True))


def test_match_prefers_the_same_name_and_leaves_out_what_has_none():
    assert names.match(["module.a", "a", "b"], ["a", "module.a", "c"]) == {
        "module.a": "module.a",
        "a": "a",
    }
    assert names.match(["module.a", "a"], ["a"]) == {"a": "a"}


def test_match_refuses_to_guess():
    with pytest.raises(ValueError, match=r"'a' could be any of 'module.a', '_orig_mod.a'"):
        names.match(["a"], ["module.a", "_orig_mod.a"])
    with pytest.raises(ValueError, match=r"'module.a' and '_orig_mod.a' both match 'a'"):
        names.match(["module.a", "_orig_mod.a"], ["a"])


NAMES = ["conv.weight", "conv.bias", "module.fc.weight", "odd[0].w"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, [1, 1, 1, 1]),
        ("*.weight", None, [1, 0, 1, 0]),
        ("fc.*", None, [0, 0, 1, 0]),
        ("odd[0].w", None, [0, 0, 0, 1]),
        (None, ["*.bias", "fc.weight"], [1, 0, 0, 1]),
        (["conv.*", "fc.*"], "*.bias", [1, 0, 1, 0]),
        ([], None, [0, 0, 0, 0]),
        (None, [], [1, 1, 1, 1]),
    ],
)
def test_patterns_select_names_as_they_are_or_canonical(include, exclude, expected):
    assert names.eligible(NAMES, include, exclude) == [bool(e) for e in expected]


def test_pattern_that_matches_nothing_names_its_neighbours():
    with pytest.raises(ValueError, match=r"exclude: 'conv.wieght' matches .*'conv.weight'"):
        names.eligible(NAMES, None, "conv.wieght")


def test_a8_shared_parameter_counts_once_at_its_first_name():
    first = nn.Linear(3, 3)
    shared = nn.Parameter(torch.ones(2))
    pairs = [("a", shared), ("b", first.weight), ("c", shared)]
    assert list(names.named_tensors(pairs)) == ["a", "b"]
    assert list(names.named_tensors(dict(pairs))) == ["a", "b"]
    assert list(names.named_tensors(first)) == ["weight", "bias"]


def test_one_name_for_two_parameters_is_an_error():
    with pytest.raises(ValueError, match="'a' stands for two parameters"):
        names.named_tensors([("a", torch.ones(1)), ("a", torch.ones(1))])


@pytest.mark.parametrize("source", [nn.Linear(1, 1).parameters(), [("a", 1)], [(1, torch.ones(1))]])
def test_anything_but_named_tensors_is_refused(source):
    with pytest.raises(TypeError, match=r"pass model or model.named_parameters\(\)"):
        names.named_tensors(source)
