"""Order, number and labels of the steps of random labelling (ACCEPTANCE C1, C2)."""

import pytest
import torch

from salun_fast.data import ImageSet
from salun_fast.methods.random_label import draw_labels, random_label_plan
from salun_fast.methods.settings import resolve


def numbered(count, first, classes=10):
    """Images that carry their own number, so that batches can be traced."""
    numbers = torch.arange(first, first + count)
    return ImageSet(numbers[:, None].float(), numbers % classes)


def plan_of(forget, retain, **overrides):
    return random_label_plan(forget, retain, resolve("salun", "paper", overrides), 10)


def test_c1_sequential_epochs_take_18_and_159_steps_on_the_papers_split():
    plan = plan_of(numbered(4500, 0), numbered(40500, 4500))
    batches = list(plan.batches(torch.Generator().manual_seed(0)))
    assert plan.steps == len(batches) == 18 + 159
    assert plan.images == 45000
    is_forget = [bool((images < 4500).all()) for images, _ in batches]
    assert is_forget == [True] * 18 + [False] * 159
    assert len(batches[17][0]) == 4500 - 17 * 256
    seen = torch.cat([images for images, _ in batches]).flatten().long()
    assert torch.equal(seen.sort().values, torch.arange(45000))


def test_c1_retain_images_keep_their_labels():
    plan = plan_of(numbered(30, 0), numbered(70, 30), batch_size=16)
    for images, labels in plan.batches(torch.Generator().manual_seed(0)):
        if (images >= 30).all():
            assert torch.equal(labels, images.flatten().long() % 10)


def test_c1_paper_labels_are_uniform_over_the_other_classes():
    labels = torch.arange(90_000) % 10
    drawn = draw_labels(
        labels, 10, true_label_included=False, generator=torch.Generator().manual_seed(0)
    )
    shift = (drawn - labels) % 10
    assert not (drawn == labels).any()
    counts = shift.bincount(minlength=10)[1:]
    assert ((counts - 10_000).abs() < 400).all()


def test_c1_reference_labels_are_uniform_over_all_classes():
    labels = torch.arange(100_000) % 10
    drawn = draw_labels(
        labels, 10, true_label_included=True, generator=torch.Generator().manual_seed(0)
    )
    assert (drawn.bincount(minlength=10) - 10_000).abs().max() < 400
    assert (drawn == labels).double().mean().item() == pytest.approx(0.1, abs=0.005)


def test_c1_labels_are_redrawn_for_every_pass():
    plan = plan_of(numbered(64, 0), numbered(10, 64), batch_size=64)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(2):
        images, labels = next(iter(plan.batches(generator)))
        drawn.append(labels[images.flatten().argsort()])
    assert not torch.equal(*drawn)


def test_c2_mixed_epochs_shuffle_both_sets_together_and_draw_labels_once():
    plan = plan_of(numbered(100, 0), numbered(300, 100), order="mixed", batch_size=32)
    generator = torch.Generator().manual_seed(0)
    epochs = [list(plan.batches(generator)) for _ in range(2)]
    assert plan.steps == len(epochs[0]) == 13  # ceil(400 / 32)
    labels_of = []
    for batches in epochs:
        images = torch.cat([i for i, _ in batches]).flatten().long()
        labels = torch.cat([y for _, y in batches])
        assert torch.equal(images.sort().values, torch.arange(400))
        labels_of.append(labels[images.argsort()])
        assert torch.equal(labels_of[-1][100:], torch.arange(100, 400) % 10)
        assert not (labels_of[-1][:100] == torch.arange(100) % 10).any()
    assert any((i < 100).any() and (i >= 100).any() for i, _ in epochs[0])
    assert not torch.equal(labels_of[0][:100], labels_of[1][:100])


def test_c2_labels_of_a_mixed_epoch_do_not_change_within_it():
    plan = plan_of(numbered(40, 0), numbered(40, 40), order="mixed", batch_size=16)
    batches = plan.batches(torch.Generator().manual_seed(0))
    first, second = (
        {int(i): int(y) for images, labels in batches for i, y in zip(images, labels, strict=True)}
        for _ in range(2)
    )
    assert first == second


def test_forget_images_alone_when_there_is_no_retain_data():
    plan = plan_of(numbered(40, 0), None, batch_size=16)
    assert plan.steps == len(list(plan.batches(torch.Generator()))) == 3


def test_one_class_cannot_be_relabelled():
    with pytest.raises(ValueError, match="at least 2 classes"):
        random_label_plan(numbered(4, 0), None, resolve("rl", "paper", {}), 1)


def test_mixed_order_refuses_images_of_two_dtypes():
    bytes_ = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    floats = ImageSet(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="of one dtype"):
        plan_of(bytes_, floats, order="mixed")
