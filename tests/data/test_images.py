"""Image sets, conversion of what users pass, batches and augmentation."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from salun_fast.data import Batches, ImageSet, as_image_set


def pictures(count=10, size=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


class PairDataset(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_uint8_images_are_scaled_and_normalised():
    data = pictures()
    images, labels = data.batch(torch.tensor([3, 1]))
    mean = torch.tensor(data.mean).view(1, 3, 1, 1)
    std = torch.tensor(data.std).view(1, 3, 1, 1)
    torch.testing.assert_close(images, (data.images[[3, 1]].float() / 255 - mean) / std)
    assert labels.tolist() == [3, 1]
    assert labels.dtype == torch.int64


def test_float_inputs_of_any_shape_pass_unchanged():
    data = ImageSet(torch.randn(4, 7), torch.tensor([0, 1, 0, 1]))
    assert torch.equal(data.batch(torch.arange(4))[0], data.images)


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64)])
def test_labels_must_be_integer_classes(labels):
    with pytest.raises(ValueError, match="one integer class per image"):
        ImageSet(torch.randn(4, 7), labels)


def test_image_and_label_counts_must_agree():
    with pytest.raises(ValueError, match="found 4 images and 3 labels"):
        ImageSet(torch.randn(4, 7), torch.zeros(3, dtype=torch.int64))


def test_every_accepted_form_gives_the_same_set():
    images, labels = torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 2, 1, 0])
    forms = [
        (images, labels),
        TensorDataset(images, labels),
        DataLoader(TensorDataset(images, labels), batch_size=2, shuffle=True),
        PairDataset(list(zip(images, labels.tolist(), strict=True))),
        ImageSet(images, labels),
    ]
    for form in forms:
        found = as_image_set(form)
        assert torch.equal(found.images, images)
        assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("form", ["sampler", "batch_sampler"])
def test_a_loader_gives_what_its_sampler_draws(form):
    data, chosen = pictures(), [7, 2, 5]
    if form == "sampler":
        loader = DataLoader(data, batch_size=2, sampler=SubsetRandomSampler(chosen))
    else:
        loader = DataLoader(data, batch_sampler=[[7, 2], [5]])
    found = as_image_set(loader)
    assert sorted(found.labels.tolist()) == sorted(chosen)
    assert found.mean == data.mean


def test_subset_of_an_image_set_keeps_its_normalisation():
    found = as_image_set(Subset(pictures(), [4, 2]))
    assert found.labels.tolist() == [4, 2]
    assert found.mean == (0.5, 0.4, 0.3)


def test_other_types_are_refused_by_name():
    with pytest.raises(TypeError, match="forget must be a map-style Dataset"):
        as_image_set(iter([1, 2]), "forget")
    with pytest.raises(TypeError, match=r"forget\[0\] must be a tensor"):
        as_image_set(PairDataset([("not an image", 1)]), "forget")


def test_batches_cover_every_image_once_and_the_last_is_short():
    batches = Batches(pictures(10), 4, generator=torch.Generator().manual_seed(1))
    first, second = ([labels for _, labels in batches] for _ in range(2))
    assert len(batches) == 3
    assert [len(labels) for labels in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_same_generator_seed_gives_the_same_batches_bit_for_bit():
    runs = [
        list(
            Batches(pictures(), 3, generator=torch.Generator().manual_seed(5), augment="flip_crop")
        )
        for _ in range(2)
    ]
    for (images, labels), (images_again, labels_again) in zip(*runs, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)


def test_channels_last_changes_layout_and_no_value():
    data = pictures()
    plain, last = (next(iter(Batches(data, 4, channels_last=c)))[0] for c in (False, True))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("augment", ["crop", "flip_crop"])
def test_augmented_images_are_shifts_and_mirrors_of_the_padded_ones(augment):
    size = 5
    image = torch.arange(1, size * size + 1, dtype=torch.float32).view(1, 1, size, size)
    data = ImageSet(image.expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.int64))
    padded = torch.nn.functional.pad(image[0, 0], (4, 4, 4, 4))
    allowed = {
        tuple((window.flip(1) if mirror else window).flatten().tolist())
        for y in range(9)
        for x in range(9)
        for window in [padded[y : y + size, x : x + size]]
        for mirror in ([False, True] if augment == "flip_crop" else [False])
    }
    batches = Batches(data, 64, generator=torch.Generator().manual_seed(0), augment=augment)
    found = {tuple(i.flatten().tolist()) for i in next(iter(batches))[0]}
    assert found <= allowed
    assert len(found) > 20


def test_augmentation_of_vectors_is_refused():
    data = ImageSet(torch.randn(4, 7), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="augment='crop' needs images"):
        Batches(data, 2, generator=torch.Generator(), augment="crop")
