"""UA, RA, TA and the test filter (ACCEPTANCE D3)."""

import pytest
import torch
from torch import nn

from salun_fast.data import ImageSet
from salun_fast.evaluation import evaluate_classifier, outputs

pytest.importorskip("sklearn")


class Echo(nn.Module):
    """Predicts the class written in the first input, with a batch norm to betray train mode."""

    def __init__(self, classes=4):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.scale = nn.Parameter(torch.ones(1))
        self.classes = classes

    def forward(self, x):
        self.norm(x)
        one_hot = nn.functional.one_hot(x[:, 0].long(), self.classes).float()
        return one_hot * self.scale * (2.0 + x[:, 1:2])


def image_set(said, true, seed=0):
    noise = torch.rand(len(said), generator=torch.Generator().manual_seed(seed))
    return ImageSet(torch.stack([torch.tensor(said).float(), noise], dim=1), torch.tensor(true))


FORGET = image_set([0, 1, 2, 3, 3], [0, 1, 2, 2, 2])  # 60 % right
RETAIN = image_set([0, 1, 0, 1] * 5, [0, 1, 0, 0] * 5)  # 75 % right
TEST = image_set([0, 1, 2, 2, 3], [0, 1, 0, 2, 2])  # 60 % right; without class 2: 2 of 3


def test_d3_ua_is_the_complement_of_forget_accuracy():
    found = evaluate_classifier(Echo(), forget=FORGET, retain=RETAIN, test=TEST)
    assert found.ua == pytest.approx(40.0)
    assert found.ra == pytest.approx(75.0)
    assert found.sizes == {"forget": 5, "retain": 20, "test": 5}


def test_d3_test_images_are_filtered_only_in_class_wise_mode():
    everything = evaluate_classifier(Echo(), forget=FORGET, retain=RETAIN, test=TEST)
    class_wise = evaluate_classifier(
        Echo(), forget=FORGET, retain=RETAIN, test=TEST, forget_class=2
    )
    assert everything.ta == pytest.approx(60.0)
    assert class_wise.ta == pytest.approx(100.0 * 2 / 3)
    assert class_wise.mia_sample_sizes == {"members": 3, "non_members": 3, "forget": 5}


def test_evaluation_leaves_training_flags_and_statistics_alone():
    model = Echo().train()
    model.scale.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    outputs(model, TEST)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_empty_sets_are_an_error():
    nothing = ImageSet(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="retain holds no images"):
        evaluate_classifier(Echo(), forget=FORGET, retain=nothing, test=TEST)
