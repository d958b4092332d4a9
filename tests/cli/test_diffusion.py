"""train ddpm, unlearn ddpm and concept, sample, evaluate and report, as a user meets them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from salun_fast.diffusion_records import load_samples
from salun_fast.mask import SaliencyMask
from salun_fast.patch import UnlearningPatch
from salun_fast.run import RunFolder
from tests.cli.conftest import call, fine
from tests.conftest import same_bytes
from tests.diffusion import tiny

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

UNET = [
    "unet.block_out_channels=[8,8]", "unet.down_block_types=[DownBlock2D,DownBlock2D]",
    "unet.up_block_types=[UpBlock2D,UpBlock2D]", "unet.layers_per_block=1",
    "unet.norm_num_groups=4", "scheduler.num_train_timesteps=100",
]  # fmt: skip
TRAIN = ["train.steps=4", "train.batch_size=16", "sampling_steps=2", *UNET]
FEW = [
    "unlearn.steps=4", "unlearn.batch_size=16", "unlearn.lr=1e-2", "unlearn.checkpoint_every=2",
    "unlearn.report_every=1", "unlearn.saliency_guidance=1",
]  # fmt: skip
PROMPTS = [
    f'forget_prompt="{tiny.FORGET}"', f'replacement_prompt="{tiny.REPLACEMENT}"',
    f'retain_prompts=["{tiny.REPLACEMENT}","{tiny.RETAIN}"]', "images=4",
]  # fmt: skip
DDPM_FILES = {
    "config.yaml", "metrics.jsonl", "mask.safetensors", "patch.safetensors", "pipeline",
    "checkpoints", "samples", "report.html",
}  # fmt: skip


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """The run folder of a class-conditional model, hardly trained."""
    folder = tmp_path_factory.mktemp("ddpm") / "original"
    fine("train", "ddpm", *TRAIN, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def forgot_class(ddpm, original, tmp_path_factory):
    """The run folder of a SalUn run judged by the classifier ``original``."""
    folder = tmp_path_factory.mktemp("ddpm") / "salun"
    fine(
        "unlearn", "ddpm", "--from", ddpm, "forget_class=3", f"judge={original}",
        "samples_per_class=4", "snapshot_every=2", *FEW, "--out", folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """The folder of a text-to-image pipeline of random weights."""
    folder = tmp_path_factory.mktemp("text") / "pipeline"
    tiny.text_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def forgot_prompt(text, tmp_path_factory):
    """The run folder of a SalUn run on generated pictures."""
    folder = tmp_path_factory.mktemp("text") / "salun"
    fine(*_concept(text), "--out", folder)
    return folder


def _concept(text):
    return ("unlearn", "concept", "--from", text, *PROMPTS, *FEW, "sampling_steps=2",
            "snapshot_every=0")  # fmt: skip


def _weights(folder, name="pipeline"):
    return load_file(folder / name / "unet" / "diffusion_pytorch_model.safetensors")


def _same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert same_bytes(ours[name], theirs[name]), name


def _without_times(folder):
    """metrics.jsonl without what differs from run to run."""
    lines = RunFolder(folder).metrics()
    for line in lines:
        for name in ("seconds", "peak_memory_mb"):
            line.pop(name, None)
        for step in line.get("history", ()):
            del step["seconds"]
    return lines


# --- train ----------------------------------------------------------------------------------------


def test_training_leaves_pipelines_that_diffusers_loads(ddpm):
    from salun_fast import ClassConditionalPipeline

    assert {p.name for p in ddpm.iterdir()} == {
        "config.yaml", "metrics.jsonl", "checkpoints", "pipeline", "pipeline-averaged",
        "samples.png",
    }  # fmt: skip
    pipeline = ClassConditionalPipeline.from_pretrained(ddpm / "pipeline")
    assert pipeline.unet.config.num_class_embeds == 11
    assert pipeline.unet.config.sample_size == 8
    raw, averaged = _weights(ddpm), _weights(ddpm, "pipeline-averaged")
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


def test_training_describes_the_unet_that_it_built(ddpm, tmp_path):
    text = (ddpm / "config.yaml").read_text()
    for line in ("command: train ddpm", "num_class_embeds: 11", "sample_size: 8", "lr: 0.0002"):
        assert line in text
    fine("train", "ddpm", "--config", ddpm / "config.yaml", "--out", tmp_path / "again")
    _same(_weights(tmp_path / "again"), _weights(ddpm))


def test_a_model_trained_without_the_class_stands_beside_the_unlearned_one(
    forgot_class, original, tmp_path
):
    folder, page = tmp_path / "retrained", tmp_path / "both.html"
    fine(
        "train", "ddpm", *TRAIN, "leave_out=3", f"judge={original}", "samples_per_class=4",
        "--out", folder,
    )  # fmt: skip
    *steps, record = RunFolder(folder).metrics()
    assert {line["kind"] for line in steps} == {"step"}
    assert (record["method"], record["task"]) == ("retrain", "class 3")
    fine("report", forgot_class, folder, "--out", page)
    assert "Retrain" in page.read_text()
    output = fine("evaluate", forgot_class, "--retrain", folder)
    assert output.index("Original") < output.index("SalUn") < output.index("Retrain")


# --- unlearn ddpm ---------------------------------------------------------------------------------


def test_unlearning_a_class_leaves_a_whole_run_folder(forgot_class, ddpm):
    assert {p.name for p in forgot_class.iterdir()} == DDPM_FILES
    *steps, before, after = RunFolder(forgot_class).metrics()
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert (before["method"], after["method"]) == ("original", "salun")
    assert after["task"] == "class 3"
    assert after["certificate"]["holds"]
    assert after["metrics"]["counts"] == {"forget": 4, "retained": 36}
    assert set(after["metrics"]["per_row"]) == set(map(str, range(10)))
    mask = SaliencyMask.load(forgot_class / "mask.safetensors")
    assert after["mask"]["fingerprint"] == mask.fingerprint
    text = (forgot_class / "config.yaml").read_text()
    assert f"pipeline: {ddpm / 'pipeline'}" in text
    assert "density: 0.5" in text


def test_the_forgotten_row_is_among_the_pictures_of_every_record(forgot_class):
    *_, before, after = RunFolder(forgot_class).metrics()
    for record in (before, after):
        assert [record["rows"][index] for index in record["forgotten"]] == ["3"]
        assert load_samples(forgot_class / record["samples"]).shape == (10, 4, 1, 8, 8)


def test_the_animation_has_a_frame_for_every_snapshot(forgot_class):
    from PIL import Image

    after = RunFolder(forgot_class).metrics()[-1]
    assert after["samples_steps"] == [0, 2, 4]
    with Image.open(forgot_class / after["animation"]) as picture:
        assert picture.n_frames == 3


def test_frozen_weights_of_the_saved_pipeline_equal_the_originals(forgot_class, ddpm):
    mask = SaliencyMask.load(forgot_class / "mask.safetensors")
    before, after = _weights(ddpm), _weights(forgot_class)
    for name in mask.names:
        frozen = ~mask[name]
        assert torch.equal(before[name][frozen], after[name][frozen])


def test_the_patch_turns_the_original_into_the_run_s_pipeline_and_back(
    forgot_class, ddpm, tmp_path
):
    patch = forgot_class / "patch.safetensors"
    fine("patch", "apply", patch, ddpm / "pipeline", tmp_path / "applied")
    _same(
        load_file(tmp_path / "applied" / "unet" / "diffusion_pytorch_model.safetensors"),
        _weights(forgot_class),
    )
    restored = _weights(forgot_class)
    UnlearningPatch.load(patch).remove_(restored)
    _same(restored, _weights(ddpm))


def test_without_a_judge_there_are_pictures_and_no_numbers(ddpm, tmp_path):
    folder = tmp_path / "run"
    output = fine(
        "unlearn", "ddpm", "--from", ddpm / "pipeline", "forget_class=0", "method=ga",
        "snapshot_every=0", "sampling_steps=2", *FEW, "--out", folder,
    )  # fmt: skip
    assert "Nobody judged" in output
    before, after = RunFolder(folder).metrics()[-2:]
    assert before["metrics"] is after["metrics"] is after["animation"] is None
    assert {p.name for p in folder.iterdir()} == DDPM_FILES - {"mask.safetensors"}
    assert "data:image/png" in (folder / "report.html").read_text()


def test_colour_models_take_grey_data_and_a_grey_judge(original, tmp_path):
    colour = tmp_path / "colour"
    fine("train", "ddpm", *TRAIN, "unet.in_channels=3", "unet.sample_size=12", "--out", colour)
    fine(
        "unlearn", "ddpm", "--from", colour, "forget_class=3", f"judge={original}",
        "samples_per_class=2", "snapshot_every=0", *FEW, "--out", tmp_path / "run",
    )  # fmt: skip
    after = RunFolder(tmp_path / "run").metrics()[-1]
    assert load_samples(tmp_path / "run" / after["samples"]).shape == (10, 2, 3, 12, 12)
    assert after["metrics"]["judge_accuracy"] > 0


# --- unlearn concept ------------------------------------------------------------------------------


def test_unlearning_a_prompt_leaves_a_whole_run_folder(forgot_prompt, text):
    assert {p.name for p in forgot_prompt.iterdir()} == DDPM_FILES | {"cache"}
    after = RunFolder(forgot_prompt).metrics()[-1]
    assert after["task"] == f"prompt '{tiny.FORGET}'"
    assert after["rows"] == [tiny.FORGET, tiny.REPLACEMENT, tiny.RETAIN]
    assert after["forgotten"] == [0]
    assert after["certificate"]["holds"]
    parts = ("vae", "text_encoder", "tokenizer", "scheduler", "unet")
    assert all((forgot_prompt / "pipeline" / part).is_dir() for part in parts)
    restored = _weights(forgot_prompt)
    UnlearningPatch.load(forgot_prompt / "patch.safetensors").remove_(restored)
    _same(restored, load_file(text / "unet" / "diffusion_pytorch_model.safetensors"))


def test_pictures_of_folders_are_used_where_they_are_given(text, tmp_path):
    from PIL import Image

    for name, count in (("forget", 3), ("retain", 2)):
        (tmp_path / name).mkdir()
        for index in range(count):
            Image.new("RGB", (40, 20 + index), (200, 10 * index, 0)).save(
                tmp_path / name / f"{index}.png"
            )
    fine(
        *_concept(text), f"forget_images={tmp_path / 'forget'}",
        f"retain_images={tmp_path / 'retain'}", "method=rl", "--out", tmp_path / "run",
    )  # fmt: skip
    cached = (tmp_path / "run" / "cache").glob("pictures-*")
    assert list(cached) == []
    assert (tmp_path / "run" / "pipeline" / "unet").is_dir()


# --- resume ---------------------------------------------------------------------------------------


def _killed_at(step, monkeypatch, *arguments):
    """The command, stopped as by Ctrl-C once ``step`` steps were reported."""
    log = RunFolder.log

    def interrupted(self: RunFolder, record: dict) -> None:
        if record["step"] > step:
            raise KeyboardInterrupt
        log(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", interrupted)
        stopped = call(*arguments)
    assert stopped.exit_code == 130, stopped.output
    assert "--resume" in stopped.output


def test_a_killed_ddpm_run_goes_on_to_the_same_bits(
    ddpm, original, forgot_class, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    _killed_at(
        2, monkeypatch, "unlearn", "ddpm", "--from", ddpm, "forget_class=3", f"judge={original}",
        "samples_per_class=4", "snapshot_every=2", *FEW, "--out", folder,
    )  # fmt: skip
    assert not (folder / "pipeline").exists()
    fine("unlearn", "ddpm", "--resume", "--out", folder)
    _same(_weights(folder), _weights(forgot_class))
    assert _without_times(folder) == _without_times(forgot_class)
    for file in ("mask.safetensors", "patch.safetensors", "samples/salun.safetensors"):
        _same(load_file(folder / file), load_file(forgot_class / file))
    gifs = [(run / "samples" / "salun.gif").read_bytes() for run in (folder, forgot_class)]
    assert gifs[0] == gifs[1]


def test_a_killed_concept_run_goes_on_to_the_same_bits_from_the_pictures_it_has(
    text, forgot_prompt, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    _killed_at(3, monkeypatch, *_concept(text), "--out", folder)
    cached = {file: file.stat().st_mtime_ns for file in (folder / "cache").iterdir()}
    assert len(cached) == 4  # generated pictures and their encodings, to forget and to retain
    fine("unlearn", "concept", "--resume", "--out", folder)
    assert {file: file.stat().st_mtime_ns for file in (folder / "cache").iterdir()} == cached
    _same(_weights(folder), _weights(forgot_prompt))
    assert _without_times(folder) == _without_times(forgot_prompt)


def test_a_folder_in_use_is_refused_and_not_touched(ddpm, forgot_class):
    before = (forgot_class / "metrics.jsonl").read_bytes()
    result = call("unlearn", "ddpm", "--from", ddpm, "forget_class=3", "--out", forgot_class)
    assert result.exit_code == 2
    assert "already holds a run" in result.output
    assert {p.name for p in forgot_class.iterdir()} == DDPM_FILES
    assert (forgot_class / "metrics.jsonl").read_bytes() == before


def test_resuming_with_other_settings_is_refused(forgot_class, tmp_path):
    folder = shutil.copytree(forgot_class, tmp_path / "run")
    result = call("unlearn", "ddpm", "--resume", "--out", folder, "unlearn.lr=0.5")
    assert result.exit_code == 2
    assert "belongs to another run" in result.output
    result = call("unlearn", "concept", "--resume", "--out", folder)
    assert result.exit_code == 2
    assert "holds a run of `unlearn ddpm`" in result.output


# --- sample, evaluate, report ---------------------------------------------------------------------


def _size(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.size


def test_sample_shows_a_run_before_and_after(forgot_class, ddpm, tmp_path):
    both, one = tmp_path / "both.png", tmp_path / "one.png"
    fine("sample", forgot_class, "--class", 3, "--class", 4, "--count", 2, "-o", both)
    fine("sample", ddpm, "--class", 3, "--class", 4, "--count", 2, "--steps", 2, "-o", one)
    assert _size(both)[0] > 1.5 * _size(one)[0]
    assert _size(both)[1] >= _size(one)[1]


def test_sample_draws_prompts_and_by_default_those_of_the_run(forgot_prompt, text, tmp_path):
    one, run = tmp_path / "one.png", tmp_path / "run.png"
    fine("sample", text, "--prompt", "a boat", "--count", 1, "--steps", 2, "-o", one)
    fine("sample", forgot_prompt, "--count", 1, "-o", run)
    assert _size(run)[1] > _size(one)[1]  # three rows
    assert _size(run)[0] > _size(one)[0]  # two panels


def test_the_same_seed_draws_the_same_picture(ddpm, tmp_path):
    for name in ("a.png", "b.png"):
        fine("sample", ddpm, "--class", 1, "--steps", 2, "--seed", 7, "-o", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_evaluate_measures_a_ddpm_run_again(forgot_class):
    output = fine("evaluate", forgot_class)
    after = RunFolder(forgot_class).metrics()[-1]["metrics"]
    for word in ("UA %", "RA %", "distance", "Original", "SalUn", f"{after['ua']:.2f}"):
        assert word in output
    assert f"{after['frechet']['value']:.4g}" in output


def test_evaluate_scores_a_concept_run_by_a_clip_of_a_folder(forgot_prompt, monkeypatch, tmp_path):
    asked = []

    def score(images, prompts, path, device):
        if len(images) > 1:  # not the one picture by which the model is tried out
            asked.append((len(images), prompts, str(path)))
        return 20.0 + len(asked)

    monkeypatch.setattr("salun_fast.diffusion_workflow.concept.clip_score", score)
    output = fine("evaluate", forgot_prompt, f"clip_model={tmp_path}", "samples_per_prompt=2")
    for word in ("CLIP score", "21.00", "22.00", "23.00", "24.00"):
        assert word in output
    retained = [tiny.REPLACEMENT] * 2 + [tiny.RETAIN] * 2
    assert asked[:2] == [(4, retained, str(tmp_path)), (2, [tiny.FORGET] * 2, str(tmp_path))]


def test_report_is_rebuilt_from_the_folder(forgot_class, forgot_prompt):
    for folder in (forgot_class, forgot_prompt):
        before = (folder / "report.html").read_text()
        (folder / "report.html").unlink()
        fine("report", folder)
        assert (folder / "report.html").read_text() == before


# --- bad input ------------------------------------------------------------------------------------


def _refused(message, tmp_path, *arguments):
    """Exit code 2, one line with ``message``, and nothing left behind."""
    before = sorted(tmp_path.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unlearn", "dppm"], "expected classifier, ddpm, concept or key=value, found 'dppm'; did"),
        (["unlearn", "ddpm"], "needs a trained model: pass --from"),
        (["unlearn", "ddpm", "forget_clas=3"], "did you mean 'forget_class'"),
        (["unlearn", "ddpm", "unlearn.densty=3"], "did you mean 'density'"),
        (["unlearn", "ddpm", "--from", "missing"], "missing holds no pipeline"),
        (["unlearn", "concept"], "forget_prompt must be given"),
        (["unlearn", "concept", "unlearn.alpha=0"], "alpha must be greater than 0"),
        (["train", "ddpm", "unet.layers=3"], "unet does not describe a UNet2DModel"),
        (["train", "ddpm", "unet.num_class_embeds=4"], "has 10 classes and the UNet 3"),
        (["sample", "missing"], "missing holds no pipeline"),
    ],
)
def test_wrong_words_are_refused_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(message, tmp_path, *arguments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "forget_class must be given, one of 0..9"),
        (["forget_class=10"], "forget_class must be a class 0..9"),
        (["forget_class=3", "replacement_class=3"], "are both 3"),
        (["forget_class=3", "unlearn.density=2"], "density must lie in (0, 1]"),
        (["forget_class=3", "method=salon"], "method must be one of"),
        (["forget_class=3", "judge=missing"], "missing is not a run folder"),
        (["forget_class=3", "data=nothing"], "neither a known name"),
        (["forget_class=3", "mask=missing.safetensors"], "missing.safetensors"),
        (["forget_class=3", "samples_per_class=1"], "at least 2, found 1"),
        (
            ["forget_class=3", "sampling_steps=0", "snapshot_every=0"],
            "sampling steps must be at least 1",
        ),
        (["forget_class=3", "snapshot_every=-1"], "snapshot_every must be at least 1"),
    ],
)
def test_a_refused_ddpm_run_leaves_nothing(overrides, message, ddpm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(message, tmp_path, "unlearn", "ddpm", "--from", ddpm, *overrides)


def test_a_mask_of_another_model_is_refused_and_leaves_nothing(ddpm, text, forgot_prompt, tmp_path):
    mask = forgot_prompt / "mask.safetensors"
    _refused(
        "mask", tmp_path, "unlearn", "ddpm", "--from", ddpm, "forget_class=3", f"mask={mask}",
        "--out", tmp_path / "runs" / "deep",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f'replacement_prompt="{tiny.FORGET}"'], "must differ from forget_prompt"),
        ([f'retain_prompts=["{tiny.FORGET}"]'], "would teach it again"),
        (["forget_images=missing"], "forget_images=missing is not a folder"),
        (["forget_images=."], "forget_images=. holds no pictures"),
        (["images=0"], "images must be at least 1"),
        (["clip_model=missing"], "path missing is not a folder"),
        (["samples_per_prompt=0"], "samples_per_prompt must be at least 1"),
        (["unlearn.trainable=nothing"], "fits no parameter of the UNet"),
        (["unlearn.trainable=("], "regular expression"),
    ],
)
def test_a_refused_concept_run_leaves_nothing(overrides, message, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _refused(message, tmp_path, *_concept(text), *overrides)


def test_an_unreadable_picture_is_named(text, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no picture")
    _refused(
        "broken.png cannot be read as a picture", tmp_path, *_concept(text),
        f"forget_images={tmp_path / 'pictures'}", "--out", tmp_path / "run",
    )  # fmt: skip


def test_a_damaged_pipeline_is_named(ddpm, tmp_path):
    folder = shutil.copytree(ddpm / "pipeline", tmp_path / "pipeline")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    _refused(
        f"the pipeline in {folder} cannot be loaded", tmp_path, "sample", folder,
        "-o", tmp_path / "x.png",
    )  # fmt: skip


def test_classes_and_prompts_are_not_mixed_up(ddpm, text, tmp_path):
    png = tmp_path / "x.png"
    _refused("takes classes, found --prompt", tmp_path, "sample", ddpm, "--prompt", "a", "-o", png)
    _refused("takes prompts, found --class", tmp_path, "sample", text, "--class", 3, "-o", png)
    _refused("pass --prompt with what", tmp_path, "sample", text, "-o", png)
    _refused("must be one of 0..9 here", tmp_path, "sample", ddpm, "--class", 10, "-o", png)
    _refused("use unlearn concept", tmp_path, "unlearn", "ddpm", "--from", text, "--out", png)
    _refused("use unlearn ddpm", tmp_path, *_concept(ddpm), "--out", png)


def test_evaluate_asks_for_what_it_needs(forgot_prompt, ddpm, tmp_path):
    _refused("needs a CLIP model: pass clip_model=FOLDER", tmp_path, "evaluate", forgot_prompt)
    _refused("holds a run of `train ddpm`", tmp_path, "evaluate", ddpm)


def test_a_judge_of_other_classes_is_refused(ddpm, original, tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(3):
                Image.new("L", (8, 8), 90 * index).save(
                    tmp_path / "data" / part / name / f"{index}.png"
                )
    pytest.importorskip("torchvision")
    judge = tmp_path / "judge"
    fine(
        "train", f"data={tmp_path / 'data'}", "image_size=8", "width=4", "train.epochs=1",
        "--out", judge,
    )  # fmt: skip
    _refused(
        "give a judge of that data", tmp_path, "unlearn", "ddpm", "--from", ddpm,
        "forget_class=3", f"judge={judge}", "--out", tmp_path / "run",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["train", "unlearn", "demo"])
def test_every_kind_has_a_help_of_its_own(command):
    kinds = {"train": ["ddpm"], "unlearn": ["ddpm", "concept"], "demo": []}[command]
    listed = fine(command, "--help")
    for kind in ("classifier", *kinds):
        assert kind in listed
        assert "KEY=VALUE" in fine(command, kind, "--help")


def test_classifier_may_be_said_or_left_out(original, tmp_path):
    for name, words in (("a", ["train", "classifier"]), ("b", ["train"])):
        fine(*words, "width=4", "train.epochs=1", "--out", tmp_path / name)
    _same(*(load_file(tmp_path / name / "model.safetensors") for name in ("a", "b")))


def test_metrics_are_json_lines(forgot_class):
    lines = (forgot_class / "metrics.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
