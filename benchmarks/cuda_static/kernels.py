"""The kernels inside a compiled library, as ``cuobjdump`` shows them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("cuobjdump", "nvdisasm")
REMEDY = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"

_RESOURCES = re.compile(
    r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
)
_FUNCTION = re.compile(r"\s+Function : (\S+)")
_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_TEMPLATE_NAME = re.compile(r"(\w+(?:<.*>)?)\(")


class ToolMissing(RuntimeError):
    """A program that reads compiled kernels is not installed."""


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture.

    registers: per thread; stack, local, shared: bytes; opcodes: SASS instructions with their
    modifiers, such as LDG.E.128, and how often each occurs.
    """

    name: str
    architecture: str
    registers: int
    stack: int
    local: int
    shared: int
    opcodes: Counter[str]

    @property
    def instructions(self) -> int:
        return self.opcodes.total() - self.opcodes["NOP"]

    @property
    def spills(self) -> int:
        """Loads and stores of thread-local memory."""
        return self._count("LDL") + self._count("STL")

    def loads(self, bits: int) -> int:
        return self._accesses(("LD", "LDG"), bits)

    def stores(self, bits: int) -> int:
        return self._accesses(("ST", "STG"), bits)

    def _count(self, opcode: str) -> int:
        return sum(n for name, n in self.opcodes.items() if name.split(".")[0] == opcode)

    def _accesses(self, opcodes: tuple[str, ...], bits: int) -> int:
        return sum(
            n
            for name, n in self.opcodes.items()
            if name.split(".")[0] in opcodes and _width(name) == bits
        )


def _width(opcode: str) -> int:
    """Bits that a load or store moves per thread."""
    widths = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
    return next((widths[part] for part in opcode.split(".")[1:] if part in widths), 32)


def read(library: Path, architecture: str) -> list[Kernel]:
    """The library's kernels for ``sm_80``, ``sm_90``, …, sorted by name."""
    select = ("-arch", architecture, str(library))
    resources = {
        name: tuple(map(int, numbers))
        for name, *numbers in _RESOURCES.findall(_dump("-res-usage", *select))
    }
    opcodes = dict(_opcodes(_dump("-sass", *select)))
    if resources.keys() != opcodes.keys():
        raise RuntimeError(f"{library}: cuobjdump lists other kernels by -res-usage than by -sass")
    names = dict(zip(resources, _readable(list(resources)), strict=True))
    return sorted(
        (
            Kernel(names[mangled], architecture, registers, stack, local, shared, opcodes[mangled])
            for mangled, (registers, stack, shared, local) in resources.items()
        ),
        key=lambda kernel: kernel.name,
    )


def tool_version() -> str:
    """Such as 13.5.37."""
    found = re.search(r"V(\d+(?:\.\d+)+)", _dump("--version"))
    return found[1] if found else "unknown"


def tool(name: str) -> Path:
    """cuobjdump or nvdisasm: NVIDIA's package of this environment, else whatever PATH holds."""
    for packaged in sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/bin/{name}")):
        return packaged
    if found := shutil.which(name):
        return Path(found)
    raise ToolMissing(
        f"{name} reads the compiled kernels and is neither in this environment nor on PATH: "
        f"{REMEDY}, or put a CUDA toolkit on PATH"
    )


def _dump(*arguments: str) -> str:
    cuobjdump, nvdisasm = (tool(name) for name in TOOLS)
    # cuobjdump calls nvdisasm by name.
    environment = {"PATH": f"{nvdisasm.parent}:{cuobjdump.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        [cuobjdump, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"{cuobjdump} {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def _opcodes(sass: str) -> Iterator[tuple[str, Counter[str]]]:
    counts: Counter[str] = Counter()
    for line in sass.splitlines():
        if function := _FUNCTION.match(line):
            counts = Counter()
            yield function[1], counts  # filled by the lines that follow
        elif instruction := _INSTRUCTION.match(line):
            counts[instruction[1]] += 1


def _readable(mangled: list[str]) -> list[str]:
    """Without namespaces and arguments: masked_step<SgdRule, Float32, BFloat16>."""
    if shutil.which("c++filt") is None:
        raise ToolMissing("c++filt makes kernel names readable and is not on PATH: get binutils")
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    return [_short(name) for name in done.stdout.splitlines()]


def _short(demangled: str) -> str:
    plain = re.sub(r"\(anonymous namespace\)::|salun::cuda::|salun::|^void ", "", demangled)
    plain = re.sub(r"\((?:long|int|bool)\)|(?<=\d)l?(?=[,>])", "", plain).replace("> >", ">>")
    found = _TEMPLATE_NAME.match(plain)
    return found[1] if found else plain
