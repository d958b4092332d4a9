"""The CPU kernels without torch: under the address, undefined-behaviour and thread sanitizers, and
as shipped with an inaccessible page behind every buffer; by every instruction set of this machine.

``tests/native`` holds the driver. Flags and sources are read from CMakeLists.txt: what is checked
is what is built.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "tests" / "native"
ON_X86 = platform.machine() in ("x86_64", "AMD64")


@dataclass(frozen=True)
class Build:
    """One way to compile kernels and driver."""

    optimize: tuple[str, ...]
    sanitize: tuple[str, ...] = ()
    # The cases prepare and compare on one thread: watching them too would only cost time.
    watch_cases: bool = True


BUILDS = {
    # The loops as users run them, vectorised: sanitizers keep the compiler from doing that.
    "shipped": Build(("-O3", "-DSALUN_GUARD_PAGES")),
    "address": Build(
        ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
        ("-fsanitize=address,undefined",),
    ),
    # -O2: at -O1 GCC 12 spills no mask register, see bits_above in loops/select.h.
    "thread": Build(("-O2", "-g1"), ("-fsanitize=thread",), watch_cases=False),
}

# Fault, the build that must notice it, and what it says. A guard page can only end the run.
PLANTED = [
    ("wrong-bit", "shipped", r"FAIL planted: tensor 0 differs at byte 3999"),
    ("short-gradient", "shipped", ""),
    ("short-parameter", "shipped", ""),
    ("short-state", "shipped", ""),
    ("short-words", "shipped", ""),
    ("short-gradient", "address", r"heap-buffer-overflow.*\s+READ of size"),
    ("short-parameter", "address", r"heap-buffer-overflow"),
    ("short-state", "address", r"heap-buffer-overflow"),
    ("short-words", "address", r"heap-buffer-overflow"),
    ("misaligned", "address", r"runtime error: .* misaligned address"),
    ("overlapping-threads", "thread", r"WARNING: ThreadSanitizer: data race"),
    ("unguarded-count", "thread", r"WARNING: ThreadSanitizer: data race"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Callable[[str], Driver]:
    """Compile the driver in one of the ways, once."""
    if shutil.which(_compiler()) is None:
        pytest.skip(f"no C++ compiler: '{_compiler()}' is not installed (set CXX)")

    @cache
    def build(kind: str) -> Driver:
        folder = tmp_path_factory.mktemp(kind)
        prefix = _runs_here(BUILDS[kind], folder)
        return Driver(_compile(BUILDS[kind], folder), prefix)

    return build


@dataclass(frozen=True)
class Driver:
    program: Path
    prefix: tuple[str, ...]

    def run(self, *arguments: str, isa: str = "") -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ, "SALUN_FAST_ISA": isa, "TSAN_OPTIONS": "halt_on_error=1"
        }  # fmt: skip
        return subprocess.run(
            [*self.prefix, str(self.program), *arguments], env=environment, timeout=400,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip

    def isas(self) -> list[str]:
        return self.run("isas").stdout.split()


@pytest.mark.parametrize("kind", BUILDS)
def test_every_kernel_computes_the_formula_and_stays_within_its_memory(driver, kind):
    program = driver(kind)
    isas = program.isas()
    assert isas[0] == "baseline"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = dict(zip(isas, pool.map(lambda isa: program.run(isa=isa), isas), strict=True))
    for isa, run in runs.items():
        assert run.returncode == 0, f"{kind}, {isa}:\n{run.stdout[-4000:]}"
        held = re.fullmatch(rf"(\d+) comparisons held with {isa}\n", run.stdout)
        assert held, f"{kind}, {isa}: {run.stdout[-4000:]}"
        assert int(held[1]) > 5000  # the cases did run


@pytest.mark.parametrize(
    ("fault", "kind", "report"), PLANTED, ids=[f"{fault}-{kind}" for fault, kind, _ in PLANTED]
)
def test_a_planted_fault_is_noticed(driver, fault, kind, report):
    program = driver(kind)
    for isa in program.isas():
        run = program.run(fault, isa=isa)
        assert run.returncode != 0, f"{fault} went unnoticed with {isa}"
        assert re.search(report, run.stdout), f"{isa}: {run.stdout[-4000:]}"


# --- building -------------------------------------------------------------------------------------


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _runs_here(build: Build, folder: Path) -> tuple[str, ...]:
    """What to put before a program of this build; skips where its runtime does not work at all.

    Older thread sanitizers refuse kernels that randomise addresses widely.
    """
    source, program = folder / "probe.cc", folder / "probe"
    source.write_text("int main() {}\n")
    made = _call(_compiler(), *build.sanitize, str(source), "-o", str(program))
    if made.returncode != 0:
        pytest.skip(f"{_compiler()} cannot link {' '.join(build.sanitize)}: {made.stdout[-300:]}")
    for prefix in ((), ("setarch", platform.machine(), "-R")):
        if (not prefix or shutil.which(prefix[0])) and not _call(*prefix, str(program)).returncode:
            return prefix
    pytest.skip(f"programs built with {' '.join(build.sanitize)} do not start on this machine")


def _compile(build: Build, folder: Path) -> Path:
    common = ["-std=c++20", f"-I{ROOT / 'csrc'}", *_exact_flags(), *build.optimize, "-pthread"]
    if ON_X86:
        common.append("-DSALUN_X86_VARIANTS")
    jobs: list[tuple[Path, list[str]]] = [(path, []) for path in _kernel_sources()]
    jobs += [
        (ROOT / "csrc/cpu/loops/variant.cpp", [f"-DSALUN_ISA={name}", *flags])
        for name, flags in _isas()
    ]
    jobs += [(path, []) for path in sorted(NATIVE.glob("*.cpp"))]

    def compile_one(job: tuple[int, tuple[Path, list[str]]]) -> Path:
        index, (source, flags) = job
        watched = build.watch_cases or not source.stem.endswith("_cases")
        out = folder / f"{index}-{source.stem}.o"
        extra = [*flags, *(build.sanitize if watched else ())]
        _must(_compiler(), *common, *extra, "-c", str(source), "-o", str(out))
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, enumerate(jobs)))
    program = folder / "driver"
    _must(_compiler(), *build.sanitize, "-pthread", *map(str, objects), "-o", str(program))
    return program


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def _must(*command: str) -> None:
    done = _call(*command)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"


# --- what CMakeLists.txt says ---------------------------------------------------------------------


@cache
def _cmake() -> str:
    return (ROOT / "CMakeLists.txt").read_text()


def _exact_flags() -> list[str]:
    """The arithmetic, without the optimisation level, which each build sets itself."""
    found = re.search(r"set\(EXACT (.*?)\)", _cmake(), re.DOTALL)
    assert found
    return [flag for flag in found[1].split() if not flag.startswith(("-O", "-fmacro-prefix-map"))]


def _isas() -> list[tuple[str, list[str]]]:
    found = [call.split() for call in re.findall(r"^\s*add_isa\((.*)\)", _cmake(), re.MULTILINE)]
    assert found[0] == ["baseline"]
    return [(name, flags) for name, *flags in (found if ON_X86 else found[:1])]


def _kernel_sources() -> list[Path]:
    library = re.search(r"add_library\(salun_fast_cpu MODULE(.*?)\)", _cmake(), re.DOTALL)
    assert library
    names = re.findall(r"csrc/cpu/[\w/]+\.cpp", library[1])
    return [ROOT / name for name in names if not name.endswith("/register.cpp")]
