"""The demo end to end, much reduced, and the doctor."""

from __future__ import annotations

from salun_fast import _load
from salun_fast.experiment import read_records
from tests.cli.conftest import fine

REDUCED = [
    "width=4", "seeds=[0]", "tasks=[class]", "train.epochs=1", "unlearn.epochs=1",
    "methods=[original,retrain,salun,random_mask]", "densities=[0.5]", "lrs.class.salun=[0.01]",
    "lrs.class.random_mask=[0.01]", "max_members=100", "threads=1",
]  # fmt: skip


def test_demo_compares_reports_and_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "demo"
    output = fine("demo", *REDUCED, "--out", folder)
    assert "One seed cannot tell SalUn from a random mask" in " ".join(output.split())
    html, table = (folder / "report.html").read_text(), (folder / "table.md").read_text()
    assert "data:image/png" in html
    assert "| Random mask |" in table
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:-1]))
    fine("demo", *REDUCED, "--out", folder)
    assert len(read_records(folder)) == len(lines)
    assert "tuning_seed: 100" in (folder / "config.yaml").read_text()


def test_demo_runs_without_a_config_library_only_to_say_so(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "omegaconf", None)
    from tests.cli.conftest import call

    result = call("demo", "--out", tmp_path)
    assert result.exit_code == 2
    assert 'pip install "salun-fast[demo]"' in result.output


def test_doctor_tells_versions_kernels_and_variables(monkeypatch):
    monkeypatch.setenv(_load.ISA_VARIABLE, "baseline")
    output = fine("doctor")
    for word in ("torch", "python", "native kernels", "instruction set", "threads", "baseline"):
        assert word in output


def test_doctor_says_why_the_kernels_are_not_active(monkeypatch):
    missing = _load.LoadStatus(native=False, reason="SALUN_FAST_NATIVE=0 is set")
    monkeypatch.setattr(_load, "status", lambda: missing)
    output = fine("doctor")
    assert "not active: SALUN_FAST_NATIVE=0 is set" in output
    assert "Everything works" in output
