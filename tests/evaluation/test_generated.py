"""UA, RA and the distance of generated images, by a judge that reads the class off the pixels."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from salun_fast.data import ImageSet
from salun_fast.evaluation.frechet import RealFeatures
from salun_fast.evaluation.generated import Judge, evaluate_generated


class Reader(nn.Module):
    """Says the class that the first pixel shows in units of 0..1; features are the pixels."""

    def __init__(self, classes=4):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(16, classes, bias=False)
        self.classes = classes

    def forward(self, x):
        self.norm(x)
        self.head(x.flatten(1))
        shown = (x[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(shown, self.classes).float()


def showing(classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(classes), 1, 4, 4), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(classes, dtype=torch.uint8)
    return images


def image_set(shown, true):
    return ImageSet(showing(shown), torch.tensor(true))


TEST = image_set([0, 1, 2, 3, 3] * 4, [0, 1, 2, 3, 0] * 4)  # 80 % right
FORGET = showing([2, 0, 1, 1, 3])  # 4 of 5 are no longer class 2
RETAINED = showing([0, 0, 1, 2, 3, 3, 3, 3])
LABELS = torch.tensor([0, 1, 1, 3, 3, 3, 3, 3])  # 6 of 8 as asked


@pytest.fixture
def judge():
    return Judge.measured(Reader(), "reader", TEST)


def measured(judge, **changed):
    arguments = {
        "forget_images": FORGET,
        "forget_class": 2,
        "retained_images": RETAINED,
        "retained_labels": LABELS,
    }
    return evaluate_generated(judge, **(arguments | changed))


def test_the_judge_states_its_own_accuracy(judge):
    assert judge.test_accuracy == pytest.approx(80.0)
    assert judge.classes == (0, 1, 2, 3)
    assert measured(judge).judge_accuracy == pytest.approx(80.0)


def test_the_judge_normalises_as_its_test_images_are_normalised():
    shifted = ImageSet(TEST.images, TEST.labels, mean=(-1 / 255,), std=(1.0,))
    judge = Judge.measured(Reader(classes=300), "shifted", shifted)
    assert judge.predict(showing([0, 5, 9])).tolist() == [1, 6, 10]


def test_ua_counts_forget_images_called_otherwise_and_ra_retained_ones_called_as_asked(judge):
    found = measured(judge)
    assert found.ua == pytest.approx(80.0)
    assert found.ra == pytest.approx(75.0)
    assert found.per_class == pytest.approx({0: 100.0, 1: 50.0, 2: 20.0, 3: 80.0})
    assert list(found.per_class) == [0, 1, 2, 3]
    assert found.counts == {"forget": 5, "retained": 8}


def test_the_distance_leaves_the_forgotten_class_out(judge):
    real = RealFeatures.of(judge.features(), TEST)
    found = measured(judge, real=real).frechet
    assert found.counts == (8, 16)  # class 2 has 4 of the 20 real images
    assert found.label == "Fréchet distance, features of reader"
    kept = TEST.labels != 2
    same = measured(
        judge,
        retained_images=TEST.images[kept],
        retained_labels=TEST.labels[kept],
        real=real,
    )
    assert same.frechet.value == pytest.approx(0.0, abs=1e-9)
    assert measured(judge).frechet is None


def test_the_result_goes_through_json(judge):
    found = measured(judge, real=RealFeatures.of(judge.features(), TEST)).as_dict()
    again = json.loads(json.dumps(found))
    assert again["ua"] == found["ua"]
    assert again["frechet"]["label"] == "Fréchet distance, features of reader"
    assert measured(judge).as_dict()["frechet"] is None


def test_judging_leaves_the_model_alone(judge):
    judge.model.train()
    before = {name: t.clone() for name, t in judge.model.state_dict().items()}
    measured(judge, real=RealFeatures.of(judge.features(), TEST))
    assert judge.model.norm.training
    assert all(torch.equal(before[n], t) for n, t in judge.model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"forget_class": 9}, "class 9 was asked for.*tested on classes 0, 1, 2, 3"),
        ({"forget_class": 3}, "must not hold forget_class 3, found it at index 3"),
        ({"retained_labels": LABELS + 2}, "class 5 was asked for"),
        ({"retained_labels": LABELS[:3]}, "retained_labels must be one integer class per retained"),
        ({"retained_labels": LABELS.float()}, "retained_labels must be one integer class"),
        ({"forget_images": FORGET[:0]}, "forget_images .* holds no pixel"),
        ({"forget_images": FORGET[:, :, :3]}, "forget_images have shape \\[1, 3, 4\\].*reader"),
        ({"retained_images": RETAINED[:, 0]}, "retained_images must be uint8"),
    ],
)
def test_input_that_does_not_fit_the_judge_is_refused(judge, changed, message):
    with pytest.raises(ValueError, match=message):
        measured(judge, **changed)


def test_images_straight_from_the_model_are_refused(judge):
    with pytest.raises(TypeError, match="forget_images must be uint8.*127.5"):
        measured(judge, forget_images=FORGET / 127.5 - 1)


def test_a_perfect_generator_of_digits_is_judged_as_well_as_the_test_set():
    pytest.importorskip("sklearn")
    from salun_fast.data import load_images

    data = load_images("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    pixels, labels = data.train.batch(torch.arange(len(data.train)))
    centres = torch.stack([pixels[labels == c].mean(dim=0).flatten() for c in range(10)])
    with torch.no_grad():
        model[1].weight.copy_(centres)
        model[1].bias.copy_(-0.5 * centres.square().sum(dim=1))  # nearest centre
    judge = Judge.measured(model, "nearest centre", data.test)
    forget = data.test.labels == 3
    found = evaluate_generated(
        judge,
        forget_images=data.test.images[forget],
        forget_class=3,
        retained_images=data.test.images[~forget],
        retained_labels=data.test.labels[~forget],
        real=RealFeatures.of(judge.features(), data.train),
    )
    right = (100 - found.ua) * int(forget.sum()) + found.ra * int((~forget).sum())
    assert right / len(data.test) == pytest.approx(judge.test_accuracy)
    assert judge.test_accuracy > 80
    assert found.frechet.value < 5
