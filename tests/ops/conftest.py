"""Every test of an op runs once per backend, unless it is marked ``cpu_only``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.ops import backends

# For runs under a sanitizer: every test, with fewer examples.
settings.register_profile("sanitized", max_examples=10, deadline=None, derandomize=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=backends.BACKENDS, help="run the op tests on this only")
    parser.addoption("--emulated-library", help="kernels of cuda_on_cpu, compiled already")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_only: about the library of the CPU kernels")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    wanted = metafunc.config.getoption("--backend", None)
    chosen = [wanted] if wanted else backends.present()
    if metafunc.definition.get_closest_marker("cpu_only"):
        chosen = [name for name in chosen if name == "cpu"]
    metafunc.parametrize("backend", chosen, indirect=True)


@pytest.fixture(scope="session")
def emulated_library(request: pytest.FixtureRequest) -> object:
    return backends.emulated_library(request.config.getoption("--emulated-library", None))


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend that runs the ops in this test."""
    name: str = request.param
    if reason := backends.unavailable(name):
        pytest.skip(reason)
    if name == "cuda_on_cpu":
        request.getfixturevalue("emulated_library")
    with backends.in_place_of_cpu(name):
        yield name
