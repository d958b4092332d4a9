"""The membership attack and the entropies (ACCEPTANCE D2, D4)."""

import math

import pytest
import torch

from salun_fast.evaluation import entropy, membership_inference, modified_entropy

sklearn_svm = pytest.importorskip("sklearn.svm")


def confidences(count, seed, low=0.0):
    generator = torch.Generator().manual_seed(seed)
    return low + (1 - low) * torch.rand(count, generator=generator)


def test_d2_attack_equals_a_direct_support_vector_machine():
    members, others, forget = confidences(80, 0, 0.4), confidences(80, 1), confidences(37, 2, 0.2)
    features = torch.cat([members, others])[:, None].double().numpy()
    attack = sklearn_svm.SVC(C=3, gamma="auto", kernel="rbf")
    attack.fit(features, [1] * 80 + [0] * 80)
    called_out = 100.0 * (attack.predict(forget[:, None].double().numpy()) == 0).mean()
    result = membership_inference(members, others, forget)
    assert result.score == pytest.approx(called_out)
    assert result.sizes == {"members": 80, "non_members": 80, "forget": 37}


def test_d2_attack_tells_separate_distributions_apart():
    seen, unseen = confidences(60, 0, 0.9), confidences(60, 1) * 0.3
    assert membership_inference(seen, unseen, confidences(40, 3, 0.9)).score == 0.0
    assert membership_inference(seen, unseen, confidences(40, 4) * 0.3).score == 100.0


def test_d2_identical_distributions_give_about_half():
    sets = [confidences(400, seed) for seed in (0, 1, 2)]
    assert 30.0 < membership_inference(*sets).score < 70.0


def test_d2_members_and_non_members_are_equally_many_and_capped():
    sets = confidences(500, 0), confidences(200, 1), confidences(90, 2)
    assert membership_inference(*sets).sizes == {"members": 200, "non_members": 200, "forget": 90}
    capped = membership_inference(*sets, max_members=50, seed=3)
    assert capped.sizes == {"members": 50, "non_members": 50, "forget": 90}
    assert capped == membership_inference(*sets, max_members=50, seed=3)


def test_attack_without_images_is_an_error():
    with pytest.raises(ValueError, match="found 5, 0 and 5"):
        membership_inference(torch.ones(5), torch.ones(0), torch.ones(5))


def test_d4_entropy_of_one_hot_and_uniform_rows():
    rows = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert entropy(rows).tolist() == pytest.approx([0.0, math.log(4)])


def test_d4_modified_entropy_matches_the_formula_row_by_row():
    probabilities = (
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    )
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 3])
    expected = []
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        value = -(1 - row[label]) * math.log(row[label])
        value -= sum(p * math.log(1 - p) for i, p in enumerate(row) if i != label)
        expected.append(value)
    assert modified_entropy(probabilities, labels).tolist() == pytest.approx(expected)


def test_d4_modified_entropy_knows_the_true_label_where_entropy_does_not():
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert modified_entropy(certain, torch.tensor([0, 1])).tolist() == [0.0, math.inf]
