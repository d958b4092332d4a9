"""The concept demo from made weights to its report, tiny; and what the package ships."""

from __future__ import annotations

import pytest
import torch

from salun_fast import diffusion_records as records
from salun_fast.data import load_images
from salun_fast.demo import concept
from salun_fast.demo.captioned import STYLES, captioned, prompt
from salun_fast.demo.concept import ConceptDemo, Forgotten, run_concept_demo
from salun_fast.demo.concept_weights import SHIPPED, load_concept, train_concept_weights
from salun_fast.demo.diffusion import run_diffusion_demo
from salun_fast.demo.drawing import drawn
from salun_fast.demo.train_pipeline import PipelineTraining

BRIEF = PipelineTraining(vae_steps=2, vae_batch=4, steps=2, rounds=1, batch=4)


@pytest.fixture(scope="module", autouse=True)
def few_pictures_of_few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(drawn.__kwdefaults__, "steps", 2)
        patch.setattr(concept, "SHOWN", 2)
        patch.setattr(concept, "SHOWN_IN_FRAMES", 1)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concept") / "models"
    train_concept_weights(
        folder, data="digits", settings=BRIEF, judge_epochs=1, per_caption=1, progress=False
    )
    return folder


@pytest.fixture(scope="module")
def settings(made):
    return ConceptDemo(
        data="digits",
        models=str(made),
        objects=(("three", "seven"),),
        styles=(("outline", "plain"),),
        unlearn={"steps": 2, "lr": 1e-3, "alpha": 0.5, "batch_size": 4},
        images=8,
        per_caption=1,
        workers=1,
        threads=1,
    )


@pytest.fixture(scope="module")
def compared(settings, tmp_path_factory):
    """The folder of a whole comparison, and its records."""
    folder = tmp_path_factory.mktemp("concept") / "demo"
    return folder, run_concept_demo(settings, folder)[1:]


def test_an_object_and_a_style_are_forgotten_by_every_method(compared):
    folder, found = compared
    assert {(r["task"], r["method"]) for r in found} == {
        (task, method)
        for task in ("object 'three'", "style 'outline'")
        for method in ("original", "salun", "random_mask", "rl", "ga")
    }
    for record in found:
        assert 0 <= record["metrics"]["ua"] <= 100
        assert len(record["metrics"]["per_row"]) == 10 + len(STYLES)
        images = records.load_samples(folder / record["samples"])
        assert images.shape == (len(record["rows"]), concept.SHOWN, 3, 32, 32)
        outlined = [record["rows"][i] for i in record["forgotten"]]
        word = "three" if "three" in record["task"] else "outline"
        assert outlined == [row for row in record["rows"] if word in row]
        if record["method"] in ("salun", "random_mask"):
            assert record["certificate"]["holds"]


def test_the_demo_writes_a_page(settings, compared):
    page = run_diffusion_demo(settings, compared[0]).read_text()
    assert "object &#39;three&#39;" in page
    assert "data:image/gif;base64," in page


def test_what_is_forgotten_is_replaced_in_the_caption_and_the_rest_of_it_kept():
    pictures = captioned(load_images("digits")).subset(torch.arange(40))
    words, names = pictures.object_words, list(STYLES)
    thing, style = Forgotten("object", "three", "seven"), Forgotten("style", "outline", "plain")
    for place, (said, other) in enumerate(
        zip(thing.replaced(pictures), style.replaced(pictures), strict=True)
    ):
        assert said == prompt("seven", names[pictures.styles[place]])
        assert other == prompt(words[pictures.objects[place]], "plain")
    assert torch.equal(thing.indices(pictures), pictures.objects == 3)
    assert torch.equal(style.indices(pictures), pictures.styles == names.index("outline"))


def test_a_pair_of_equals_or_an_unknown_method_is_refused(made):
    with pytest.raises(ValueError, match="drawn instead"):
        ConceptDemo(data="digits", models=str(made), objects=(("three", "three"),))
    with pytest.raises(ValueError, match="methods"):
        ConceptDemo(
            data="digits", models=str(made), objects=(("three", "one"),), methods=("magic",)
        )
    with pytest.raises(ValueError, match="objects or styles"):
        ConceptDemo(data="digits", models=str(made))


def test_models_are_loaded_on_the_device_asked_for_or_it_is_refused(made, tmp_path):
    pipeline, judges, _ = load_concept(made, "meta")
    for model in (pipeline.unet, pipeline.vae, judges.objects, judges.styles):
        assert {p.device.type for p in model.parameters()} == {"meta"}
    settings = ConceptDemo(
        data="digits", models=str(made), objects=(("three", "one"),), device="cuda:99"
    )
    with pytest.raises(ValueError, match="device 'cuda:99' is not available here"):
        run_concept_demo(settings, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_shipped_pipeline_draws_styles_and_most_objects_as_captioned():
    pipeline, judges, facts = load_concept(SHIPPED)
    said = judges.agreement(drawn(pipeline, facts["objects"], per_caption=1, seed=3, steps=15))
    assert said.styles > 85
    assert said.objects > 45  # chance is 10
