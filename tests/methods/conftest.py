import pytest
import torch

from tests.methods.tiny import TinyNet, blobs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def forget():
    return blobs(22, seed=1)


@pytest.fixture
def retain():
    return blobs(50, seed=2)


@pytest.fixture
def test_set():
    return blobs(20, seed=3)


@pytest.fixture
def quick():
    """Settings under which a run takes a few steps."""
    return {"epochs": 2, "batch_size": 16, "lr": 0.05, "progress": False}
