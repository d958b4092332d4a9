"""How many threads of a kernel a multiprocessor holds (CUDA C++ Programming Guide, "Compute
Capabilities", and NVIDIA's occupancy calculator)."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cuda_static.kernels import Kernel

BLOCK = 256  # threads: kBlock of csrc/cuda/launch.cuh
_WARP = 32
_REGISTERS_PER_THREAD_STEP = 8  # 256 per warp
_WARPS_STEP = 4  # warps of a block are spread over four schedulers


@dataclass(frozen=True)
class Multiprocessor:
    """registers: of 32 bits; shared: bytes for blocks; reserved: bytes of them lost per block, or
    0 where the compiler's figure holds them already."""

    name: str
    registers: int = 65_536
    threads: int = 2_048
    blocks: int = 32
    shared: int = 0
    reserved: int = 1_024


MULTIPROCESSORS = {
    "sm_80": Multiprocessor("A100", shared=164 * 1024),
    "sm_90": Multiprocessor("H100", shared=228 * 1024, reserved=0),
}


def occupancy(kernel: Kernel, block: int = BLOCK) -> float:
    """Share of a multiprocessor's threads that run at once."""
    processor = MULTIPROCESSORS[kernel.architecture]
    warps = block // _WARP
    per_thread = _up(max(kernel.registers, 1), _REGISTERS_PER_THREAD_STEP)
    by_registers = _down(processor.registers // (per_thread * _WARP), _WARPS_STEP) // warps
    shared = kernel.shared + processor.reserved
    by_shared = processor.shared // shared if shared else processor.blocks
    blocks = min(by_registers, by_shared, processor.threads // block, processor.blocks)
    return blocks * block / processor.threads


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _down(number: int, step: int) -> int:
    return number // step * step
