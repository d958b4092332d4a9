"""Compile the CUDA sources, unchanged, for the CPU: plain, and watched by sanitizers.

Flags come from CMakeLists.txt: what is checked is what is built. Objects are kept by their content
in ``build/cuda_on_cpu``: a second run compiles nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMULATOR = Path(__file__).parent / "emulator"
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_on_cpu"

# Where the dispatcher finds the emulated kernels (tests/ops/backends.py).
DISPATCH_KEY = "PrivateUse3"


@dataclass(frozen=True)
class Kind:
    """One way to compile the kernels. The engine that runs them is never watched itself."""

    optimize: tuple[str, ...]
    sanitize: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()  # to be loaded before anything else


KINDS = {
    "plain": Kind(("-O2", "-g1")),
    "address": Kind(
        ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"),
        ("-fsanitize=address,undefined",),
        ("libasan.so", "libstdc++.so"),
    ),
    "thread": Kind(("-O1", "-g1"), ("-fsanitize=thread",), ("libtsan.so", "libstdc++.so")),
}


@dataclass(frozen=True)
class Edit:
    """A fault to plant: ``old`` becomes ``new`` in a copy of a file of ``csrc``."""

    file: str
    old: str
    new: str


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def unavailable(kind: str = "plain") -> str:
    """Why kernels of this kind can be neither compiled nor run here; empty if they can."""
    if shutil.which(compiler()) is None:
        return f"no C++ compiler: '{compiler()}' is not installed (set CXX)"
    if platform.machine() not in ("x86_64", "AMD64"):
        return "the emulation of CUDA switches stacks on x86-64 only"
    if not list((CSRC / "cuda").glob("*.cu")):
        return "no CUDA sources here"
    if _prefix(kind) is None:
        return f"programs built with {' '.join(KINDS[kind].sanitize)} do not start on this machine"
    return ""


def library(kind: str, edits: Sequence[Edit] = (), seen_by: str = "*") -> Path:
    """The shared library that registers the emulated ops under :data:`DISPATCH_KEY`.

    ``edits`` are made in a copy of the sources; ``seen_by``: in which .cu file they show (all).
    """
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    changed = [source for source in sources if edits and seen_by in ("*", source.name)]
    objects = _compile(kind, CSRC, [*_engine_sources(), *(s for s in sources if s not in changed)])
    if changed:
        copy = _edited(edits)
        objects += _compile(kind, copy, [copy / "cuda" / source.name for source in changed])
    # Symbolic: in a process with the real CUDA libraries, ours must still call our own.
    linking = ["-shared", "-Wl,-Bsymbolic", str(_torch() / "lib" / "libtorch_cpu.so")]
    return _link(kind, objects, "cuda_on_cpu.so", linking)


def program(kind: str, sources: Sequence[Path]) -> Path:
    """A program of its own kernels, without torch."""
    return _link(kind, _compile(kind, CSRC, [*_engine_sources(), *sources]), "program", [])


def command(kind: str, *arguments: str) -> list[str]:
    """How to start a program of this kind."""
    return [*(_prefix(kind) or ()), *arguments]


def environment(kind: str, **more: str) -> dict[str, str]:
    """Of a process that runs kernels of this kind."""
    return {
        **os.environ,
        "MALLOC_PERTURB_": "190",  # fresh memory holds rubbish, as the sanitizers have it too
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "TSAN_OPTIONS": "halt_on_error=1 ignore_noninstrumented_modules=1 atexit_sleep_ms=0",
        **more,
    }


def python_environment(kind: str, **more: str) -> dict[str, str]:
    """The same for Python, which must load the sanitizer before all else, and for it the library
    of the exceptions that it watches. The CPU kernels are not asked: an editable install would
    build them anew, under the sanitizer."""
    names = KINDS[kind].runtime
    found = [_output(compiler(), f"-print-file-name={name}").strip() for name in names]
    return environment(
        kind, LD_PRELOAD=":".join(found), OMP_NUM_THREADS="1", SALUN_FAST_NATIVE="0", **more
    )


# --- compiling ------------------------------------------------------------------------------------


def _compile(kind: str, csrc: Path, sources: Sequence[Path]) -> list[Path]:
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda source: _object(kind, csrc, source), sources))


def _object(kind: str, csrc: Path, source: Path) -> Path:
    folders = (csrc, EMULATOR)
    flags = _flags(kind, source)
    read = [path.read_bytes() for path in _files_read(source, folders)]
    out = CACHE / f"{source.stem}-{_digest(_version(), *flags, *read)}.o"
    includes = [f"-I{folder}" for folder in folders]
    if not out.exists():
        _run_to(out, [compiler(), *flags, *includes, "-c", str(source)])
    return out


def _link(kind: str, objects: Sequence[Path], name: str, flags: Sequence[str]) -> Path:
    inputs = [*KINDS[kind].sanitize, "-pthread", *map(str, objects), *flags]
    out = CACHE / f"{_digest(_version(), *inputs)}-{kind}-{name}"
    if not out.exists():
        _run_to(out, [compiler(), *inputs])
    return out


def _flags(kind: str, source: Path) -> list[str]:
    common = ["-std=c++20", "-fPIC", "-pthread", *_warnings(), *exact_flags()]
    if source.parent == EMULATOR:
        return [*common, "-O2", "-g1"]
    return [
        *common, *KINDS[kind].optimize, *KINDS[kind].sanitize, *_torch_flags(), "-x", "c++",
    ]  # fmt: skip


def _engine_sources() -> list[Path]:
    return sorted(EMULATOR.glob("*.cpp"))


def _files_read(source: Path, folders: Sequence[Path]) -> list[Path]:
    """A source and all that it includes from ``folders``."""
    found = [source]
    for path in found:
        for name in re.findall(r'^#include ["<](.+?)[">]', path.read_text(), re.MULTILINE):
            candidates = (folder / name for folder in (path.parent, *folders))
            hit = next((c for c in candidates if c.is_file()), None)
            if hit and hit not in found:
                found.append(hit)
    return found


def _run_to(out: Path, command: Sequence[str]) -> None:
    """Run a compiler; ``out`` appears complete or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{os.getpid()}-{out.name}")
    _output(*command, "-o", str(partial))
    partial.replace(out)


def _output(*command: str) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


# --- planted faults -------------------------------------------------------------------------------


def _edited(edits: Sequence[Edit]) -> Path:
    """A copy of ``csrc`` with every edit made; each must fit exactly one place."""
    texts = {path.relative_to(CSRC): path.read_text() for path in _copied()}
    for edit in edits:
        text = texts[Path(edit.file)]
        count = text.count(edit.old)
        assert count == 1, f"{edit.file} holds {count} times: {edit.old}"
        texts[Path(edit.file)] = text.replace(edit.old, edit.new)
    copy = CACHE / f"edited-{_digest(*texts.values())}"
    for name, text in texts.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    return copy


def _copied() -> Iterator[Path]:
    for pattern in ("*.h", "*.cuh", "*.cu"):
        yield from (path for path in sorted(CSRC.rglob(pattern)) if "cpu" not in path.parts)


# --- what CMakeLists.txt and the machine say ------------------------------------------------------


@cache
def _cmake() -> str:
    return (ROOT / "CMakeLists.txt").read_text()


def _words(variable: str) -> list[str]:
    found = re.search(rf"set\({variable} (.*?)\)", _cmake(), re.DOTALL)
    assert found, f"CMakeLists.txt sets no {variable}"
    return found[1].split()


def exact_flags() -> list[str]:
    """The arithmetic, without the optimisation level, which each kind sets itself."""
    return [flag for flag in _words("EXACT") if not flag.startswith(("-O", "-fmacro-prefix-map"))]


def _warnings() -> list[str]:
    return _words("WARNINGS")


def _torch_flags() -> list[str]:
    major, minor = (int(_words(f"TORCH_TARGET_{part}")[0]) for part in ("MAJOR", "MINOR"))
    return [
        "-isystem",
        str(_torch() / "include"),
        f"-DTORCH_TARGET_VERSION={hex(major << 56 | minor << 48)}ULL",
        f"-DSALUN_CUDA_KEY={DISPATCH_KEY}",
    ]


@cache
def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


@cache
def _prefix(kind: str) -> tuple[str, ...] | None:
    """What to put before a program; None where none of its kind starts.

    Older thread sanitizers refuse kernels that randomise addresses widely.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, probe = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text("int main() {}\n")
        if not _succeeds(compiler(), *KINDS[kind].sanitize, str(source), "-o", str(probe)):
            return None
        still = ("setarch", platform.machine(), "-R")
        prefixes = [still, ()] if kind == "thread" and shutil.which(still[0]) else [()]
        return next((prefix for prefix in prefixes if _succeeds(*prefix, str(probe))), None)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@cache
def _version() -> str:
    return _output(compiler(), "--version")
