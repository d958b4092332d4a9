"""From traffic to time on an H100: a model with four assumed numbers, not a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cuda_static.traffic import Traffic


@dataclass(frozen=True)
class Gpu:
    """bandwidth: bytes/s by the data sheet; share: of it that kernels reach; per_launch: seconds
    from one kernel to the next; from_host: bytes/s from memory that is not pinned."""

    name: str = "H100 SXM"
    bandwidth: float = 3.35e12
    share: float = 0.8
    per_launch: float = 2e-6
    from_host: float = 2.5e10


def seconds(traffic: Traffic, gpu: Gpu) -> float:
    return (
        traffic.moved / (gpu.bandwidth * gpu.share)
        + traffic.launches * gpu.per_launch
        + traffic.carried / gpu.from_host
    )


def assumptions(gpu: Gpu) -> list[tuple[str, str, str]]:
    """What, how much, why."""
    return [
        ("memory bandwidth", f"{gpu.bandwidth / 1e12:.2f} TB/s", f"data sheet of the {gpu.name}"),
        ("share of it reached", f"{gpu.share:.0%}", "by every kernel alike, ours and others'"),
        ("per kernel launch", f"{gpu.per_launch * 1e6:.0f} µs", "a queue that never runs dry"),
        (
            "host to device",
            f"{gpu.from_host / 1e9:.0f} GB/s",
            "PCIe 5 x16 from memory that is not pinned; generous",
        ),
        (
            "caches",
            "none",
            "every kernel reads and writes device memory; ResNet-18's arrays (45 MB each) would "
            "partly stay in the H100's second-level cache (50 MB)",
        ),
        ("Python", "free", "favours those who launch once per tensor"),
        ("sort", "radix, 8 bits a pass", "as CUB sorts pairs of key and int64 index"),
    ]
