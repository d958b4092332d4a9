"""The comparison: schedule, resuming, summary."""

import json
from dataclasses import replace

import pytest
import torch

from salun_fast.experiment import (
    EXPERIMENTS,
    ExperimentSettings,
    jobs,
    read_records,
    run_experiment,
    summarise,
)
from salun_fast.experiment import runner as runner_module
from salun_fast.experiment.jobs import load_model, mask_file, task_data
from salun_fast.experiment.settings import COMPARED
from salun_fast.mask import SaliencyMask

pytest.importorskip("sklearn")

TINY = ExperimentSettings(
    width=4,
    seeds=(0, 1),
    train={"epochs": 2, "batch_size": 256, "readout_images": 50},
    unlearn={"epochs": 1, "batch_size": 256, "readout_images": 50},
    lrs=dict.fromkeys(
        ("random", "class"),
        dict.fromkeys(COMPARED[2:], (0.01,)) | {"salun": (0.01, 0.05), "rl": (0.01, 1e25)},
    ),
    densities=(0.3, 0.5),
    search_images=100,
    max_members=60,
    threads=1,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    seen = []
    records = run_experiment(TINY, folder, on_record=lambda *facts: seen.append(facts))
    return folder, records, seen


def kinds(records, kind):
    return [r for r in records if r["kind"] == kind]


def test_every_method_task_and_seed_has_its_run(finished):
    _, records, seen = finished
    runs = {(r["task"], r["seed"], r["method"]) for r in kinds(records, "run")}
    wanted = {(t, s, m) for t in TINY.tasks for s in TINY.seeds for m in COMPARED}
    assert runs == wanted | {(t, 100, "retrain") for t in TINY.tasks}
    assert len(kinds(records, "train")) == 3
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1:] == (runner_module.job_count(TINY),) * 2


def test_search_uses_its_own_seed_and_the_smallest_gap_wins(finished):
    _, records, _ = finished
    tried = kinds(records, "search")
    assert {r["seed"] for r in tried} == {TINY.tuning_seed}
    for choice in kinds(records, "choice"):
        same = [r for r in tried if (r["task"], r["method"]) == (choice["task"], choice["method"])]
        assert choice["average_gap"] == min(r["average_gap"] for r in same)
        if choice["method"] == "salun":
            assert len(same) == 3  # two learning rates, then the other density
    for run in kinds(records, "run"):
        if run["method"] not in ("original", "retrain"):
            chosen = [
                c["overrides"]
                for c in kinds(records, "choice")
                if (c["task"], c["method"]) == (run["task"], run["method"])
            ]
            assert run["overrides"] == chosen[0]


def test_a_candidate_that_diverges_loses_and_says_why(finished):
    _, records, _ = finished
    lost = [r for r in kinds(records, "search") if r["overrides"].get("lr") == 1e25]
    assert {r["average_gap"] for r in lost} == {100.0}
    assert all("holds NaN or infinity" in r["diverged"] for r in lost)
    chosen = [r for r in kinds(records, "choice") if r["method"] == "rl"]
    assert {r["overrides"]["lr"] for r in chosen} == {0.01}


def test_the_random_mask_has_saluns_density(finished):
    folder, records, _ = finished
    for task in TINY.tasks:
        masks = {
            r["method"]: r["mask"]
            for r in kinds(records, "run")
            if (r["task"], r["seed"]) == (task, 0) and r.get("mask")
        }
        assert masks["salun"]["count"] == masks["random_mask"]["count"]
        assert masks["salun"]["fingerprint"] != masks["random_mask"]["fingerprint"]
        assert sum(masks["salun"]["layers"].values()) > 0
        loaded = SaliencyMask.load(mask_file(folder, "salun", 0, task))
        assert loaded.fingerprint == masks["salun"]["fingerprint"]


def test_masked_runs_carry_a_certificate_that_holds(finished):
    for run in kinds(finished[1], "run"):
        if run["method"] in ("salun", "random_mask"):
            assert run["certificate"]["holds"]
            assert run["certificate"]["changed"] == 0
        else:
            assert run.get("certificate") is None


def test_saved_models_say_what_the_records_say(finished):
    folder, records, _ = finished
    run = next(r for r in kinds(records, "run") if r["method"] == "salun" and r["seed"] == 1)
    forget, _, _, indices = task_data(TINY, run["task"], 1)
    model = load_model(TINY, folder, "salun", 1, run["task"])
    images, labels = forget.batch(torch.arange(len(run["examples"]["predicted"])))
    assert run["examples"]["indices"] == indices[: len(images)].tolist()
    assert run["examples"]["labels"] == labels.tolist()
    with torch.no_grad():
        assert model(images).argmax(1).tolist() == run["examples"]["predicted"]


def test_a_killed_comparison_goes_on_where_it_was(finished, tmp_path, monkeypatch):
    whole = finished[1]
    ran = []
    execute = runner_module.execute

    def counted(settings, where, job):
        if len(ran) == 9:
            raise KeyboardInterrupt
        ran.append(job.key)
        return execute(settings, where, job)

    monkeypatch.setattr(runner_module, "execute", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(TINY, tmp_path)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"kind": "run", "ta')  # killed while writing
    assert len(kinds(read_records(tmp_path), "settings")) == 1
    again = []
    monkeypatch.setattr(
        runner_module, "execute", lambda s, f, job: again.append(job.key) or execute(s, f, job)
    )
    resumed = run_experiment(TINY, tmp_path)
    assert not set(ran) & set(again)
    assert [metrics_of(r) for r in resumed] == [metrics_of(r) for r in whole]
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").open()] == resumed
    monkeypatch.setattr(runner_module, "execute", None)
    assert run_experiment(TINY, tmp_path) == resumed  # nothing left to do


def metrics_of(record):
    return record["kind"], record["task"], record["seed"], record["method"], record.get("metrics")


def test_other_settings_are_refused_in_the_same_folder(finished):
    with pytest.raises(ValueError, match=r"seeds was \[0, 1\] and is \[0\]"):
        run_experiment(replace(TINY, seeds=(0,)), finished[0])


def test_a_comparison_from_before_there_was_a_device_goes_on_on_the_cpu(finished, tmp_path):
    records = finished[1]
    first = {**records[0], "settings": {**records[0]["settings"]}}
    del first["settings"]["device"]
    lines = [json.dumps(first), *(json.dumps(r) for r in records[1:])]
    (tmp_path / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert run_experiment(TINY, tmp_path)[1:] == records[1:]
    with pytest.raises(ValueError, match="device was 'cpu' and is 'meta'"):
        run_experiment(replace(TINY, device="meta"), tmp_path)


def test_models_are_trained_and_loaded_on_the_device_asked_for(finished, monkeypatch):
    settings, trained = replace(TINY, device="meta"), []

    def train(model, *given, **named):
        trained.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "train_classifier", train)
    with pytest.raises(KeyboardInterrupt):
        jobs.execute(settings, finished[0], jobs.Job("train", 0))
    for model in (*trained, load_model(settings, finished[0], "original", 0)):
        assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="device 'cuda:99' is not available here"):
        run_experiment(replace(TINY, device="cuda:99"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_summary_has_means_spreads_and_gaps_of_the_means(finished):
    rows = summarise(finished[1])
    assert [(r.task, r.method) for r in rows] == [(t, m) for t in TINY.tasks for m in COMPARED]
    assert all(r.seeds == (0, 1) for r in rows)
    by_method = {r.method: r for r in rows if r.task == "random"}
    retrain, salun = by_method["retrain"], by_method["salun"]
    assert retrain.average_gap == 0.0
    assert by_method["original"].rte is None
    assert salun.rte > 0
    runs = [
        r["metrics"]
        for r in kinds(finished[1], "run")
        if (r["task"], r["method"]) == ("random", "salun")
    ]
    ua = [m["ua"] for m in runs]
    assert salun.mean["ua"] == pytest.approx(sum(ua) / 2)
    assert salun.std["ua"] == pytest.approx(abs(ua[0] - ua[1]) / 2**0.5)
    expected = sum(abs(salun.mean[k] - retrain.mean[k]) for k in ("ua", "ra", "ta", "mia")) / 4
    assert salun.average_gap == pytest.approx(expected)


def test_two_processes_do_the_same_work(tmp_path):
    few = replace(
        TINY,
        tasks=("class",),
        seeds=(0,),
        methods=("original", "retrain", "ga"),
        workers=2,
    )
    alone = run_experiment(replace(few, workers=1), tmp_path / "one")
    together = run_experiment(few, tmp_path / "two")
    key = lambda r: json.dumps(metrics_of(r)[:4])  # noqa: E731
    assert [metrics_of(r) for r in sorted(alone, key=key)] == [
        metrics_of(r) for r in sorted(together, key=key)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ("original", "salun")}, "hold 'retrain', the yardstick"),
        ({"methods": ("retrain", "magic")}, "methods must be of"),
        ({"tasks": ("half",)}, "tasks must be of random, class"),
        ({"seeds": (100,)}, "not the tuning seed"),
        ({"seeds": ()}, "at least one seed"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"lrs": {}}, r"learning rates to try for random\.ft, random\.ga"),
    ],
)
def test_impossible_comparisons_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_ready_made_comparisons_have_three_seeds_both_tasks_and_the_control(name):
    settings = EXPERIMENTS[name]
    assert len(settings.seeds) == 3
    assert settings.tasks == ("random", "class")
    assert settings.methods == COMPARED
