"""More elements than 32 bits can count. Memory that nobody touches costs nothing."""

from __future__ import annotations

import pytest
import torch

from salun_fast import bits, ops

NUMEL = 2**31 + 37


@pytest.fixture(autouse=True)
def _unwatched(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--emulated-library", None):
        pytest.skip("a quarter of a billion groups: too many under a sanitizer")


def test_a_step_reaches_the_weights_beyond_2_to_the_31():
    param = torch.zeros(NUMEL, dtype=torch.bfloat16)
    grad = torch.zeros(NUMEL, dtype=torch.bfloat16)
    words = torch.zeros(bits.word_count(NUMEL), dtype=torch.int32)
    chosen = (2**31 - 1, 2**31 + 1, NUMEL - 1)
    grad[-64:] = 1.0
    for i in chosen:
        words[i // 32] |= torch.tensor(1 << (i % 32)).to(torch.int32)
    step = torch.tensor(0.0)
    ops.masked_sgd_([param], [grad], [], [step], [words], lr=0.5)
    moved = (param[-64:].nonzero().flatten() + NUMEL - 64).tolist()
    assert moved == list(chosen)
    assert all(float(param[i]) == -0.5 for i in chosen)
    assert float(param[chosen[1] - 2**31]) == 0  # where a 32-bit index would have written
