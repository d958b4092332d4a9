"""The blocks of docs/integration.md run as printed, and the mask acts in each of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from salun_fast import Saliency, SalUnOptimizer
from salun_fast.distributed import MaskState, whole_mask
from salun_fast.mask import SaliencyMask

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n[^#]*?```python\n(.*?)```", PAGE, flags=re.DOTALL | re.M))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x.to(self.first.weight.dtype)).relu())


@pytest.fixture
def names(tmp_path, monkeypatch) -> dict[str, Any]:
    """What the page says is there, and an optimizer for blocks that go on from the first."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 6), torch.arange(24) % 4)
    model = Net()
    optimizer = SalUnOptimizer(model.named_parameters(), torch.optim.AdamW, lr=torch.tensor(1e-2))
    generator = torch.Generator().manual_seed(1)
    mask = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in model.named_parameters()}
    optimizer.set_mask(SaliencyMask.from_dict(mask))
    return {
        "Saliency": Saliency,
        "SalUnOptimizer": SalUnOptimizer,
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "loss_fn": nn.functional.cross_entropy,
        "forget_loader": DataLoader(data, batch_size=8),
        "loader": DataLoader(data, batch_size=8),
    }


def run(section: str, names: dict[str, Any], *replaced: tuple[str, str], step=False) -> None:
    """Run a block, and a ``step`` where it ends before the first; then frozen weights have their
    bytes, and selected ones moved."""
    code, model = BLOCKS[section], names["model"]
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for printed, run_here in replaced:
        assert printed in code
        code = code.replace(printed, run_here)
    exec(code, names)
    if step:
        step_once(names)
    after = {name: whole(param) for name, param in model.named_parameters()}
    mask = whole_mask(own(names).mask)
    assert 0 < mask.count < mask.numel
    for name, param in after.items():
        frozen = ~mask[name]
        assert torch.equal(param[frozen], before[name].to(param.dtype)[frozen]), name
    assert any(not torch.equal(after[name], before[name].to(after[name].dtype)) for name in after)


def step_once(names: dict[str, Any]) -> None:
    for x, y in names["loader"]:
        names["loss_fn"](names["model"](x).float(), y).backward()
    names["optimizer"].step()


def own(names: dict[str, Any]) -> SalUnOptimizer:
    """The optimizer of ours that the block used."""
    found = names["trainer"].optimizers[0] if "Unlearning" in names else names["optimizer"]
    found = getattr(found, "optim", getattr(found, "optimizer", found))
    assert isinstance(found, SalUnOptimizer)
    return found


def whole(tensor: Any) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.fixture
def group(tmp_path):
    """A process group of one: the programs in examples/ run on two."""
    meeting = f"file://{tmp_path / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# --- one process ----------------------------------------------------------------------------------


def test_plain_loop(names):
    run("Plain loop", names)
    checkpoint = torch.load("checkpoint.pt", weights_only=True)
    other = SalUnOptimizer(Net().named_parameters(), torch.optim.AdamW)
    other.load_state_dict(checkpoint["optimizer"])
    assert other.mask == names["optimizer"].mask
    torch.optim.AdamW(Net().parameters()).load_state_dict(checkpoint["optimizer"])


def test_torch_compile(names):
    config = torch._dynamo.config
    if not hasattr(config, "trace_autograd_ops"):
        pytest.skip(f"torch {torch.__version__} cannot trace backward()")
    torch._dynamo.reset()
    with config.patch(trace_autograd_ops=False):
        # inductor compiles for long
        run("torch.compile", names, ("fullgraph=True", 'fullgraph=True, backend="aot_eager"'))


def test_autocast_and_gradscaler(names):
    run("Autocast and GradScaler", names)


def test_bf16_and_fp16_parameters(names):
    exec(BLOCKS["bf16 and fp16 parameters"], names)
    step_once(names)
    states = names["optimizer"].state.values()
    assert all(state["master_param"].dtype == torch.float32 for state in states)


def test_steps_in_backward(names):
    run("Steps in backward", names)


# --- several processes ----------------------------------------------------------------------------


def test_ddp(names, group):
    names["DistributedDataParallel"] = nn.parallel.DistributedDataParallel
    run("DDP", names, step=True)
    assert names["optimizer"].mask.density == 0.5
    names["optimizer"].mask.check(Net())


def test_fsdp2_and_distributed_checkpoints(names, group):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    names.update(
        dcp=dcp,
        get_state_dict=get_state_dict,
        set_state_dict=set_state_dict,
        fully_shard=fully_shard,
        MaskState=MaskState,
    )
    run("FSDP2 and distributed checkpoints", names, step=True)
    assert names["optimizer"].mask.density == 0.5


def test_zero(names, group):
    import functools

    from torch.distributed.optim import ZeroRedundancyOptimizer

    names.update(functools=functools, ZeroRedundancyOptimizer=ZeroRedundancyOptimizer)
    run("ZeRO, DeepSpeed, FSDP1", names, step=True)


# --- launchers ------------------------------------------------------------------------------------


def test_accelerate(names, tmp_path):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    try:
        run("accelerate", {**names, "Accelerator": Accelerator})
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    assert "salun_mask" in torch.load(tmp_path / "checkpoint/optimizer.bin", weights_only=True)


def test_lightning(names):
    import lightning

    names["lightning"] = lightning
    run("Lightning", names)


def test_transformers_trainer(names):
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    names["model"] = BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=8, num_labels=3,
        )
    )  # fmt: skip
    rows = [{"input_ids": torch.randint(20, (6,)), "labels": torch.tensor(i % 3)} for i in range(8)]
    names["forget_batches"] = [{name: row[name][None] for name in row} for row in rows[:2]]
    names["dataset"] = rows
    names["arguments"] = TrainingArguments("out", max_steps=2, use_cpu=True, report_to=[])
    names["Trainer"] = Trainer
    run("transformers Trainer", names)


# --- the page -------------------------------------------------------------------------------------


def test_every_block_is_run():
    tested = {name for name in globals() if name.startswith("test_")}
    for section in BLOCKS:
        words = re.sub(r"\W+", "_", section.partition(",")[0]).lower()
        assert f"test_{words}" in tested, section


def test_every_section_and_file_that_is_linked_is_there():
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    anchors = {
        "#" + re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^## (.+)", PAGE, flags=re.M)
    }
    assert len(anchors) == len(BLOCKS) == 11
    for link in links:
        assert link in anchors or (ROOT / "docs" / link).exists(), link
    assert anchors <= set(links)


def test_every_example_is_named():
    for example in (ROOT / "examples").glob("*.py"):
        assert example.stem == "digits" or f"examples/{example.name})" in PAGE, example.name
