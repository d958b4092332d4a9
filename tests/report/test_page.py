"""report.html stands alone, shows every part and escapes what it is given."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from salun_fast.data import ImageData, ImageSet
from salun_fast.report import markdown, read_source, write_report
from salun_fast.report.page import render
from tests.report.conftest import run, source


@pytest.fixture
def data() -> ImageData:
    images = torch.arange(10 * 64, dtype=torch.int64).remainder(256).to(torch.uint8)
    part = ImageSet(images.view(10, 1, 8, 8), torch.arange(10))
    classes = ("0", "1", "<i>two</i>", "three", *"456789")
    return ImageData("digits", part, part, classes)


def test_report_is_one_file_that_needs_no_other(compared, data, tmp_path):
    write_report(compared, tmp_path / "report.html", data=data)
    html = (tmp_path / "report.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert loaded
    assert all(link.startswith(("data:", "#")) for link in loaded)
    assert "<script" not in html
    assert "@import" not in html
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_report_holds_every_part(compared, data):
    html = render(compared, data=data)
    for part in (
        "SalUn stayed farther", "9.50 ± 0.71", "(4.00)", "3.50 ± 0.00", "12.50 ± 0.00",
        "<svg", "data:image/png;base64,", "5 of 10 weights may move", "25.0", "a" * 12, "holds",
        "salun-fast demo", "Test CPU", "tuning_seed: 100",
    ):  # fmt: skip
        assert part in html, part


def test_names_from_outside_are_escaped(compared, data):
    html = render(compared, data=data)
    assert "<i>two</i>" not in html
    assert "&lt;i&gt;two" in html
    assert "fc.&lt;b&gt;" in html


def test_report_without_the_data_shows_indices_instead_of_pictures(compared):
    html = render(compared)
    assert "data:image" not in html
    assert "Forget images, before and after" in html


def test_report_of_runs_without_retrain_has_no_gaps():
    found = source([run("original", 0, (0, 100, 95, 2)), run("salun", 0, (9, 90, 85, 20))])
    html = render(found)
    assert "Distance to Retrain</h2>" not in html
    assert "nothing to judge this by" in html
    assert "nan" not in re.sub(r"data:[^\"]+", "", html)


def test_broken_certificate_is_shown_as_broken(compared):
    broken = compared.runs[-1]["certificate"]
    broken.update(changed=3, holds=False)
    assert "BROKEN" in render(compared)


def test_plot_takes_its_colours_from_the_page(compared):
    svg = render(compared).partition("<svg")[2].partition("</svg>")[0]
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_runs_of_the_tuning_seed_stay_out_of_the_tables(compared):
    noisy = replace(
        compared, records=[*compared.records, run("salun", 100, (90.0, 10.0, 10.0, 90.0))]
    )
    assert noisy.rows("random") == compared.rows("random")


def test_markdown_table_has_the_reports_numbers(compared):
    text = markdown(compared)
    assert "| SalUn | 9.50 ± 0.71 (4.00) | 99.00 ± 0.00 (1.00) |" in text
    assert "- command: `salun-fast demo`" in text
    assert "- seeds: 0, 1" in text
    assert "- processor: Test CPU" in text
    lengths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(lengths) == 1


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a run folder: config\.yaml is missing"):
        read_source([tmp_path])
