"""The page of diffusion runs shows its pictures and nothing that is not in the records."""

from __future__ import annotations

import html
import json
import re

import pytest
from PIL.ImageColor import getrgb

from salun_fast import diffusion_records as records
from salun_fast.report import read_source
from salun_fast.report.colours import ACCENT
from salun_fast.report.diffusion.markdown import diffusion_markdown
from salun_fast.report.diffusion.page import render_diffusion, write_diffusion_report
from salun_fast.report.diffusion.pictures import hero
from salun_fast.report.diffusion.source import holds_diffusion, read_diffusion
from salun_fast.report.diffusion.summary import Measured, rows
from salun_fast.report.diffusion.verdict import remarks, verdict
from salun_fast.report.grid import PIXEL_RATIO
from salun_fast.report.page import render
from salun_fast.workflow import rebuild_report
from tests.report.conftest import run as classifier_run
from tests.report.conftest import source
from tests.report.diffusion_folders import (
    BAG,
    JUDGE,
    SHIRT,
    compared,
    demo,
    metrics,
    run,
    run_folder,
)


def page(folder):
    return render_diffusion(read_diffusion([folder]))


def plain(page_html):
    """The page's text, pictures and plots left out."""
    body = re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page_html, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a demo with everything in it."""
    return demo(tmp_path_factory.mktemp("runs") / "demo", compared())


@pytest.fixture(scope="module")
def whole_page(whole):
    return page(whole)


def judged(folder, runs):
    """Verdict and remarks on these runs."""
    read = read_diffusion([demo(folder, runs)])
    found = {task: rows(read, task) for task in read.tasks}
    return verdict(found), remarks(found)


def wide(task, *, salun, control):
    """SalUn and its control on a task, one value of UA per seed."""
    return [
        run("original", 0, metrics(4.0), task),
        *(run("salun", seed, metrics(ua), task) for seed, ua in enumerate(salun)),
        *(run("random_mask", seed, metrics(ua), task) for seed, ua in enumerate(control)),
    ]


# --- the page -------------------------------------------------------------------------------------


def test_page_is_one_file_that_needs_no_other(whole, whole_page, tmp_path):
    write_diffusion_report(whole, tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text()
    assert written == whole_page
    loaded = re.findall(r'(?:src|href)="([^"]+)"', written)
    assert any(link.startswith("data:image/gif;base64,") for link in loaded)
    assert all(link.startswith(("data:", "#")) for link in loaded)
    assert "<script" not in written
    assert "@import" not in written
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_every_number_on_the_page_comes_from_the_records(whole_page):
    text = plain(whole_page)
    for part in (
        "98.50 ± 0.71 90.00 ± 0.00 2.10 ± 0.00 1.05 ± 0.00 42.50 ± 0.00",  # SalUn's line
        "97.50 90.00 1.90 0.95 –", "9.00 ± 0.00 4.50 ± 0.00", "lr 0.0001, density 0.5, steps 30",
        f"{JUDGE}, itself right on 92.25 %", "of 500", "900 generated", "54,000 real",
        f"Fréchet distance, features of {JUDGE}", "500 of 1,000 weights may move", "a" * 12,
        "holds", "3 frames from step 0 to 30", "salun-fast demo ddpm", "Test CPU",
        "no certificate of erasure", "inversion attacks",
    ):  # fmt: skip
        assert part in text, part
    assert "nan" not in text.lower()


def test_shares_of_the_heat_table_are_means_over_seeds(whole_page):
    (line,) = re.findall(r'<tr class="forgotten">(.*?)</tr>', whole_page, flags=re.S)
    assert "Bag" in line
    assert re.findall(r">([\d.]+)</td>", line) == ["96.0", "2.5", "0.0", "0.8", "1.5", "1.8"]


def test_parts_come_in_the_order_of_interest(whole_page):
    text = plain(whole_page)
    parts = (
        "Before and after", "Over the steps", "Measured", "Called as asked", "More pictures",
        "Losses", "Where SalUn's mask lies", "Freeze certificate", "Configuration", "Machine",
        "Unlearning here is approximate",
    )  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_names_from_outside_are_escaped(whole_page):
    assert "<b>Boot" not in whole_page
    assert "&lt;b&gt;Boot" in whole_page
    assert "mid.&lt;i&gt;attn" in whole_page


def test_the_forgotten_row_is_outlined_in_the_picture(whole):
    picture = hero(read_diffusion([whole]), BAG)
    middle = [picture.getpixel((picture.width // 2, y)) for y in range(picture.height)]
    marked = [y for y, colour in enumerate(middle) if colour == getrgb(ACCENT)]
    assert marked
    assert picture.height / 3 < min(marked)
    assert max(marked) < picture.height * 5 / 6


def test_the_picture_shows_no_more_seeds_than_fit_the_page(tmp_path):
    many = demo(tmp_path, compared())
    for file in (many / "samples").glob("*.safetensors"):
        records.save_samples(file, records.load_samples(file).repeat(1, 30, 1, 1, 1))
    picture = hero(read_diffusion([many]), BAG)
    assert 700 < picture.width / PIXEL_RATIO <= 1050


def test_classifier_and_diffusion_pages_share_their_shell(whole_page):
    ours, theirs = whole_page, render(source([classifier_run("original", 0, (0, 100, 95, 2))]))
    for part in ("<!doctype html>", "@media (prefers-color-scheme: dark)", "<h2>Machine</h2>"):
        assert part in ours
        assert part in theirs
    assert ".picture" not in theirs


# --- what is missing ------------------------------------------------------------------------------


def test_without_a_judge_there_are_pictures_and_no_numbers(tmp_path):
    found = page(demo(tmp_path, [run("original", 0, None), run("salun", 0, None)]))
    text = plain(found)
    assert "No judge was given, so forgetting is not measured here" in text
    assert "RTE s Original before unlearning – SalUn" in text
    assert "steps 30 42.50" in text
    assert "UA %" not in text
    assert "data:image/png;base64," in found
    assert "Called as asked" not in text


def test_a_clip_score_alone_is_shown(tmp_path):
    runs = [run("original", 0, {"clip_score": 25.0}), run("salun", 0, {"clip_score": 24.25})]
    text = plain(page(demo(tmp_path, runs)))
    assert "CLIP score RTE" in text
    assert "24.25 42.50" in text
    assert "Fréchet" not in text


def test_without_retrain_only_its_panel_and_line_are_missing(whole, tmp_path):
    runs = [record for record in compared() if record["method"] != "retrain"]
    folder = demo(tmp_path, runs)
    text = plain(page(folder))
    assert "Retrain" not in text
    assert "98.50 ± 0.71" in text
    assert hero(read_diffusion([folder]), BAG).width < hero(read_diffusion([whole]), BAG).width


def test_without_a_distance_the_goal_is_forgetting_alone(tmp_path):
    runs = [run("original", 0, metrics(4.0, None)), run("salun", 0, metrics(98.0, None))]
    said, _ = judged(tmp_path, runs)
    assert said.startswith("Forgetting class 1 (Bag): SalUn reaches a UA of at least 95 %.")


def test_samples_that_are_gone_are_named(tmp_path):
    folder = demo(tmp_path, compared())
    (folder / "samples" / "retrain-1-0.safetensors").unlink()
    text = plain(page(folder))
    assert "the file is gone" in text
    assert "retrain-1-0.safetensors" in text


def test_a_run_that_is_not_finished_shows_its_losses(tmp_path):
    found = page(run_folder(tmp_path, [], command="train ddpm"))
    assert "After 30 steps the loss is 3." in plain(found)
    assert "<svg" in found


def test_a_broken_certificate_is_shown_as_broken(tmp_path):
    runs = compared()
    runs[2]["certificate"].update(changed=3, holds=False)
    assert "BROKEN" in page(demo(tmp_path, runs))


def test_many_certificates_are_folded_under_their_count(tmp_path):
    runs = [run("salun", seed, metrics(98.0)) for seed in range(9)]
    runs[0]["certificate"].update(changed=3, holds=False)
    assert "8 of 9 hold" in page(demo(tmp_path, runs))


# --- the verdict ----------------------------------------------------------------------------------


def test_verdict_says_who_forgets_and_keeps_and_that_the_control_does_as_well(tmp_path):
    said, beside = judged(tmp_path, compared())
    assert said == (
        "Forgetting class 1 (Bag): SalUn and Random mask reach a UA of at least 95 % with a "
        "retained distance at most 10 % above the original's; GA and RL do not. Against a random "
        "mask of the same density, SalUn kept the rest better (UA 98.50 ± 0.71 % against "
        "98.25 ± 1.06 %, distance 2.10 ± 0.00 against 2.15 ± 0.00)."
    )
    assert beside == [
        "Forgetting class 1 (Bag): UA 4.00 % before, 98.50 ± 0.71 % after SalUn (distance "
        "1.05 ± 0.00 times the original's), 97.50 % retrained (distance 0.95 times the "
        "original's).",
        "Even the intervals of two equal methods lie apart by chance in about 22 % of comparisons "
        "over 2 seeds; every task makes two of them.",
    ]


def test_intervals_that_overlap_are_no_difference(tmp_path):
    said, _ = judged(tmp_path, wide(BAG, salun=(96.0, 99.0), control=(95.0, 98.0)))
    assert "SalUn does not differ beyond the spread over seeds" in said


@pytest.mark.parametrize(
    ("salun", "control", "words"),
    [
        ((99.0, 99.2), (96.0, 96.2), "SalUn forgot more ("),
        ((96.0, 96.2), (99.0, 99.2), "SalUn forgot less ("),
        ((99.0,), (50.0,), "one seed settles nothing ("),
    ],
)
def test_a_difference_needs_two_seeds_and_intervals_apart(tmp_path, salun, control, words):
    said, _ = judged(tmp_path, wide(BAG, salun=salun, control=control))
    assert f"Against a random mask of the same density, {words}" in said


def test_a_control_of_another_density_is_named(tmp_path):
    runs = wide(BAG, salun=(99.0, 99.0), control=(99.0, 99.0))
    for record in runs[-2:]:
        record["overrides"]["density"] = 0.3
    said, _ = judged(tmp_path, runs)
    assert "a random mask of another density (0.3, SalUn's is 0.5)" in said


def test_remarks_admit_that_no_mask_does_as_well(tmp_path):
    runs = wide(BAG, salun=(99.0, 99.2), control=(96.0, 96.2))
    runs += [run("rl", seed, metrics(99.1)) for seed in range(2)]
    _, beside = judged(tmp_path, runs)
    assert any("without any mask are not worse than SalUn" in line for line in beside)


def test_one_method_that_fails_is_said_to_fail(tmp_path):
    said, _ = judged(tmp_path, [run("original", 0, metrics(4.0)), run("ga", 0, metrics(50.0))])
    assert said == (
        "Forgetting class 1 (Bag): GA does not reach a UA of at least 95 % with a retained "
        "distance at most 10 % above the original's. There is no random-mask control to compare "
        "with."
    )


def test_an_interval_of_one_value_exceeds_nothing():
    assert not Measured(9.0, 0.0, 1).exceeds(Measured(1.0, 0.0, 3))
    assert Measured(9.0, 0.5, 2).exceeds(Measured(1.0, 0.5, 2))


# --- several tasks --------------------------------------------------------------------------------


def test_two_tasks_are_compared_in_one_table_with_their_mean(tmp_path):
    runs = compared() + wide(SHIRT, salun=(99.5, 99.5), control=(96.25, 96.25))
    text = plain(page(demo(tmp_path, runs)))
    assert "SalUn against the random mask" in text
    assert "mean ± std over tasks 99.00 ± 0.71 97.25 ± 1.41" in text
    assert "over 2 tasks: UA +1.75 ± 2.12 points, distance −0.01 ± 0.02 of the original's" in text
    assert "SalUn in 2 of 2 tasks" in text
    assert "GA in 0 of 1 task" in text
    assert text.count("Forgetting class 0 (Shirt)") >= 2


def test_many_tasks_fold_all_but_the_one_that_was_retrained(tmp_path):
    tasks = [f"class {index}" for index in range(3)]
    runs = [r for task in tasks for r in wide(task, salun=(99.0, 99.5), control=(99.0, 99.5))]
    found = page(demo(tmp_path, runs + compared()))
    shown = found.partition("<h2>Measured</h2>")[2].partition("<details>")[0]
    assert re.findall(r"<h3>(.*?)</h3>", shown) == ["Forgetting class 1 (Bag)"]
    assert "The other 3 tasks" in found
    assert "SalUn does not differ beyond the spread over seeds in 3 of 4 tasks" in plain(found)


# --- folders --------------------------------------------------------------------------------------


def test_report_builds_the_page_that_fits_the_folder(tmp_path):
    folder = run_folder(tmp_path, [run("original", 0, metrics(4.0)), run("salun", 0, metrics(98))])
    text = plain(rebuild_report([folder]).read_text())
    assert "Before and after" in text
    assert "class-conditional diffusion model · seed 0" in text
    assert "Test CPU" in text


def test_run_folders_are_put_side_by_side(tmp_path):
    original = run("original", 0, metrics(4.0))
    for method in ("salun", "random_mask"):
        run_folder(tmp_path / method, [original, run(method, 0, metrics(98.0))])
    text = plain(rebuild_report([tmp_path / "salun", tmp_path / "random_mask"]).read_text())
    assert "one seed settles nothing" in text
    assert "Random mask" in text


def test_a_second_run_of_one_method_and_seed_is_refused(tmp_path):
    for name in "ab":
        run_folder(tmp_path / name, [run("salun", 0, metrics(98.0))])
    with pytest.raises(ValueError, match="second run of method salun with seed 0 on class 1"):
        read_diffusion([tmp_path / "a", tmp_path / "b"])


def test_runs_judged_by_different_judges_are_refused(tmp_path):
    run_folder(tmp_path / "a", [run("salun", 0, metrics(98.0))])
    run_folder(tmp_path / "b", [run("rl", 0, metrics(98.0) | {"judge": "another"})])
    with pytest.raises(ValueError, match=r"b was judged by another \(Fréchet.* before it by small"):
        read_diffusion([tmp_path / "a", tmp_path / "b"])


def test_models_of_two_kinds_are_refused(tmp_path):
    run_folder(tmp_path / "a", [run("salun", 0, None)])
    run_folder(tmp_path / "b", [run("salun", 1, None, model="concept")])
    with pytest.raises(ValueError, match="b holds runs of a concept model, the folders before it"):
        read_diffusion([tmp_path / "a", tmp_path / "b"])


def test_a_classifiers_folder_beside_a_diffusion_models_is_refused(tmp_path):
    run_folder(tmp_path / "a", [run("salun", 0, None)])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text(json.dumps({"kind": "epoch"}) + "\n")
    with pytest.raises(ValueError, match="a holds runs of a diffusion model and .*b does not"):
        holds_diffusion([tmp_path / "a", tmp_path / "b"])


def test_a_demo_is_reported_by_itself(tmp_path):
    demo(tmp_path / "a", compared())
    demo(tmp_path / "b", compared())
    with pytest.raises(ValueError, match="is a demo's folder; report it by itself"):
        read_diffusion([tmp_path / "a", tmp_path / "b"])


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    assert not holds_diffusion([tmp_path])
    for read in (read_source, read_diffusion):
        with pytest.raises(FileNotFoundError, match=r"not a run folder: config\.yaml is missing"):
            read([tmp_path])


def test_markdown_has_the_pages_tables(tmp_path):
    runs = compared() + wide(SHIRT, salun=(99.5, 99.5), control=(96.25, 96.25))
    text = diffusion_markdown(demo(tmp_path, runs))
    assert text.startswith("# fashion-mnist, class-conditional diffusion model\n")
    assert "| SalUn | **98.50 ± 0.71** | 90.00 ± 0.00 | 2.10 ± 0.00 | **1.05 ± 0.00** |" in text
    assert "| mean ± std over tasks | 99.00 ± 0.71 | 97.25 ± 1.41 |" in text
    assert "- command: `salun-fast demo ddpm`" in text
    assert "- seeds: 0, 1" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
