"""The loop: what a run leaves, resuming, accumulation, broken data, gradients that are not finite."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from datasets import load_dataset

from dinov2_hf.config import load_config
from dinov2_hf.runs.checkpoint import find_checkpoints
from dinov2_hf.runs.integrity import prune_checkpoints
from dinov2_hf.runs.manifest import write_manifest
from dinov2_hf.runs.metrics import plot_metrics, read_metrics
from dinov2_hf.train import Callback, Trainer, build_accelerator

from .running import train


def parameters(trainer):
    return {name: value.clone() for name, value in trainer.objective.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_training_changes_student_and_teacher_and_lowers_the_loss(tiny_config, tmp_path):
    config = tiny_config("train.epochs=20")
    trainer = train(config)
    losses = [line["loss"] for line in read_metrics(Path(config.train.output_dir)) if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    anew = tiny_config("train.epochs=20", f"train.output_dir={tmp_path / 'anew'}")
    first = Trainer.from_config(anew, trainer.accelerator).objective.state_dict()
    last = trainer.objective.state_dict()
    for role in ("student", "teacher"):
        name = f"{role}.backbone.encoder.layer.0.mlp.fc1.weight"
        assert not torch.equal(first[name], last[name])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["teacher.centering=softmax"],
        ["train.gradient_accumulation_steps=2"],
        ["optim.optimizer=sgd", "teacher.update=previous_epoch", "train.checkpoint_epochs=0.5"],
        ["optim.optimizer=lars", "optim.clip_by=parameter", "teacher.update=previous_update"],
        ["optim.freeze_last_layer_by=gradients", "optim.freeze_last_layer_epochs=2.5", "optim.lr_rule=linear"],
        ["objective=dino", "dino.batch_norm=true"],
        ["objective=ibot", "ibot.mask_start_epoch=2", "ibot.mask_shape=random"],
        ["objective=simdino", "ibot.loss_weight=1", "dino.batch_norm=true"],
    ],
)
def test_resume_matches_uninterrupted_run(tiny_config, tmp_path, overrides):
    """Ended after update 5, resumed from the checkpoint at 4: every tensor bit for bit, stochastic depth included."""
    whole = train(tiny_config(f"train.output_dir={tmp_path / 'whole'}", *overrides))
    config = tiny_config(f"train.output_dir={tmp_path / 'parts'}", *overrides)
    train(config, until=5)
    again = train(config)
    assert whole.step == again.step == 6
    assert_equal(parameters(again), parameters(whole))
    moments = [trainer.training_step.optimizer.state_dict()["state"] for trainer in (whole, again)]
    for first, second in zip(*(list(state.values()) for state in moments), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def observe(trainer, seen):
    """Keeps student and average before every update."""
    update = trainer.update

    def step(*args, **kwargs):
        seen.append(parameters(trainer))
        return update(*args, **kwargs)

    trainer.update = step


def of(role, tensors):
    return {name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{role}.")}


@pytest.mark.parametrize("update", ["previous_update", "previous_epoch"])
def test_teacher_is_the_student_of_before(tiny_config, update):
    """Six updates in three epochs."""
    seen = []
    trainer = train(tiny_config(f"teacher.update={update}"), prepare=lambda trainer: observe(trainer, seen))
    seen.append(parameters(trainer))
    assert_equal(of("teacher", seen[0]), of("student", seen[0]))
    for step in range(1, 7):
        source = step - 1 if update == "previous_update" else step // 2 * 2
        assert_equal(of("teacher", seen[step]), of("student", seen[source]))
    changed = [
        name for name, value in of("student", seen[6]).items() if not torch.equal(value, of("student", seen[5])[name])
    ]
    assert len(changed) > 10


@pytest.mark.parametrize("by", ["learning_rate", "gradients"])
def test_frozen_prototypes_keep_their_values_and_with_dropped_gradients_their_moments(tiny_config, by):
    """Frozen for four of six updates."""
    states = []

    def prepare(trainer):
        update = trainer.update

        def step(*args, **kwargs):
            result = update(*args, **kwargs)
            layer = trainer.objective.student["dino_head"].last_layer.weight_v
            state = trainer.training_step.optimizer.state[layer]
            states.append((layer.detach().clone(), {name: value.clone() for name, value in state.items()}))
            return result

        trainer.update = step

    trainer = train(
        tiny_config("optim.freeze_last_layer_epochs=2", f"optim.freeze_last_layer_by={by}"), prepare=prepare
    )
    frozen, moved = states[:4], states[4:]
    assert all(torch.equal(weight, frozen[0][0]) for weight, _ in frozen)
    assert not torch.equal(moved[0][0], frozen[0][0])
    assert [state["step"].item() for _, state in states] == (
        [0, 0, 0, 0, 1, 2] if by == "gradients" else [*range(1, 7)]
    )
    assert all(state["exp_avg"].any() == (by == "learning_rate") for _, state in frozen)
    lines = read_metrics(trainer.folder)
    assert [line["last_layer_lr"] == 0 for line in lines] == [True, True, False]
    assert all(line["grad_norm/dino_head"] > 0 for line in lines)


def test_clipping_of_each_parameter_logs_the_norm_of_the_whole_gradient(tiny_config, tmp_path):
    """The norms of the first update are the same, whatever is clipped; what it moves is not."""
    runs = {}
    for by in ("network", "parameter"):
        keys = [f"optim.clip_by={by}", "optim.clip_grad=0.01", "optim.optimizer=sgd", "optim.warmup_epochs=0"]
        runs[by] = train(tiny_config(*keys, "train.log_every=1", f"train.output_dir={tmp_path / by}"), until=2)
    lines = [read_metrics(run.folder) for run in runs.values()]
    for name in ("backbone", "dino_head", "ibot_head"):
        first, second = (line[0][f"grad_norm/{name}"] for line in lines)
        assert first == pytest.approx(second, rel=1e-6) and first > 0.01
    weights = [run.objective.student["backbone"].state_dict() for run in runs.values()]
    assert [name for name in weights[0] if torch.equal(weights[0][name], weights[1][name])] == []


def test_resumed_log_has_every_line_once(tiny_config, tmp_path):
    config = tiny_config("train.log_every=1")
    train(config, until=5)
    train(config)
    steps = [line["step"] for line in read_metrics(Path(config.train.output_dir))]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_number_of_workers_does_not_change_the_run(tiny_config, tmp_path):
    first = train(tiny_config(f"train.output_dir={tmp_path / 'a'}"))
    second = train(tiny_config(f"train.output_dir={tmp_path / 'b'}", "data.num_workers=2"))
    assert_equal(parameters(first), parameters(second))


def test_streaming_run_resumes_too(tiny_config, tmp_path):
    overrides = ["data.train.streaming=true", "data.shuffle_buffer=8"]
    whole = train(tiny_config(f"train.output_dir={tmp_path / 'whole'}", *overrides))
    config = tiny_config(f"train.output_dir={tmp_path / 'parts'}", *overrides)
    train(config, until=3)
    assert_equal(parameters(train(config)), parameters(whole))


def test_workers_of_a_stream_do_not_shuffle_by_the_epoch_of_each_other(tiny_config, tmp_path):
    """64 of 24 images are read, and the workers are in different epochs of the data at times."""
    overrides = ["data.train.streaming=true", "train.epochs=8"]
    runs = [
        train(tiny_config(f"train.output_dir={tmp_path / str(workers)}", f"data.num_workers={workers}", *overrides))
        for workers in (0, 2)
    ]
    assert runs[0].source.read(64).epoch == 2
    assert_equal(*map(parameters, runs))


def test_run_on_a_mixture_resumes_and_refuses_another_mixture(tiny_config, image_folder, tmp_path):
    mix = [f"data.mix.more.path={image_folder / 'blobs'}", "data.mix.more.weight=2", "data.mix.more.streaming=true"]
    whole = train(tiny_config(f"train.output_dir={tmp_path / 'whole'}", *mix))
    parts = f"train.output_dir={tmp_path / 'parts'}"
    train(tiny_config(parts, *mix), until=3)
    for other, words in [
        ([], ["data.mix.more.path=None", f"data.mix.more.path='{image_folder / 'blobs'}'"]),
        ([*mix, "data.mix.more.weight=1"], ["data.mix.more.weight=1.0", "data.mix.more.weight=2.0"]),
        (
            [*mix, f"data.mix.new.path={image_folder}"],
            [f"data.mix.new.path='{image_folder}'", "data.mix.new.path=None"],
        ),
    ]:
        with pytest.raises(ValueError) as caught:
            train(tiny_config(parts, *other))
        assert all(word in str(caught.value) for word in words)
    assert_equal(parameters(train(tiny_config(parts, *mix))), parameters(whole))


def test_run_says_where_its_workers_read_the_same_files(tiny_config, image_folder, tmp_path, caplog):
    rows = load_dataset(str(image_folder), split="train").select_columns("image")
    rows.to_parquet(tmp_path / "table.parquet")
    overrides = [f"data.train.path={tmp_path / 'table.parquet'}", "data.train.streaming=true", "train.epochs=0.5"]
    with caplog.at_level(logging.INFO, logger="dinov2_hf"):
        train(tiny_config(*overrides, "data.num_workers=2", "data.train.streaming=false"))
        train(tiny_config(*overrides, "data.num_workers=1", f"train.output_dir={tmp_path / 'one'}"))
        assert not any("are read 2 times" in record.getMessage() for record in caplog.records)
        train(tiny_config(*overrides, "data.num_workers=2", f"train.output_dir={tmp_path / 'two'}"))
    said = [record.getMessage() for record in caplog.records if "are read 2 times" in record.getMessage()]
    assert len(said) == 1 and "data.num_workers=1" in said[0]


def test_checkpoint_that_was_being_written_is_not_taken(tiny_config):
    config = tiny_config()
    train(config, until=5)
    folder = Path(config.train.output_dir) / "checkpoints"
    partial = folder / "writing-00000006"
    shutil.copytree(folder / "step-00000004", partial)
    (partial / ".metadata").unlink()
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    assert trainer.step == 4
    trainer.run()
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000004", "step-00000006"]


def test_only_the_newest_checkpoints_are_kept(tiny_config):
    config = tiny_config("train.checkpoint_epochs=0.5", "train.keep_checkpoints=3")
    train(config)
    names = [path.name for path in find_checkpoints(Path(config.train.output_dir) / "checkpoints")]
    assert names == ["step-00000004", "step-00000005", "step-00000006"]


def test_every_nth_checkpoint_is_kept_for_good_besides_the_newest(tiny_config):
    config = tiny_config("train.checkpoint_epochs=0.5", "train.keep_every=3", "train.keep_checkpoints=2")
    train(config)
    names = [path.name for path in find_checkpoints(Path(config.train.output_dir) / "checkpoints")]
    assert names == ["step-00000003", "step-00000005", "step-00000006"]


def test_pruning_never_removes_the_newest_checkpoint(tmp_path):
    """Nor any of those to be kept, whatever else there is; 7 is one that SIGTERM left, off the cadence of 2."""
    for keep in (1, 2, 3, 9):
        for keep_every in (0, 1, 2, 5):
            folder = tmp_path / f"{keep}-{keep_every}"
            for step in (2, 4, 6, 7):
                (folder / f"step-{step:08d}").mkdir(parents=True)
                write_manifest(folder / f"step-{step:08d}", {})
                prune_checkpoints(folder, keep, keep_every, checkpoint_steps=2)
                assert int(find_checkpoints(folder)[-1].name[-8:]) == step
            left = {int(path.name[-8:]) for path in find_checkpoints(folder)}
            for_good = {step for step in (2, 4, 6) if keep_every and step // 2 % keep_every == 0}
            assert left == set((2, 4, 6, 7)[-keep:]) | for_good


def test_kill_while_a_checkpoint_is_written_anew_leaves_a_whole_one(tiny_config, monkeypatch):
    """A run that went back to an older checkpoint ends while it removes the newest one of before."""
    config = tiny_config("train.epochs=1", "train.checkpoint_epochs=0.5")
    train(config)
    folder = Path(config.train.output_dir) / "checkpoints"

    def remove_half(path, ignore_errors=False):
        if (Path(path) / "run.json").exists():
            (Path(path) / "run.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dinov2_hf.runs.checkpoint.shutil.rmtree", remove_half)
        train(config, resume=str(folder / "step-00000001"))
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    assert trainer.step == 2
    trainer.run()
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_resume_never_refuses_an_old_run_and_a_path_continues_there(tiny_config):
    config = tiny_config()
    train(config, until=5, resume="never")
    checkpoints = Path(config.train.output_dir) / "checkpoints"
    accelerator = build_accelerator(config.train)
    with pytest.raises(
        ValueError, match="checkpoints holds a run up to update 4; to start again give another train.out"
    ):
        Trainer.from_config(config, accelerator, resume="never")
    assert Trainer.from_config(config, accelerator, resume=str(checkpoints / "step-00000002")).step == 2
    with pytest.raises(FileNotFoundError, match="nowhere is not a checkpoint"):
        Trainer.from_config(config, accelerator, resume="nowhere")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.base_lr=0.5", r"optim.base_lr=0.5, but .*step-00000004 was written with optim.base_lr=0.02"),
        ("train.batch_size=8", "global batch is 8 images, but .* was written with 4"),
        ("train.epochs=4", "train.epochs=4"),
    ],
)
def test_resume_with_a_config_that_changes_the_run_is_refused(tiny_config, override, message):
    train(tiny_config(), until=5)
    config = tiny_config(override)
    with pytest.raises(ValueError, match=message):
        Trainer.from_config(config, build_accelerator(config.train))


def test_resume_with_a_config_that_changes_nothing_is_taken(tiny_config):
    train(tiny_config(), until=5)
    config = tiny_config("train.batch_size=2", "train.gradient_accumulation_steps=2", "train.log_every=1")
    assert Trainer.from_config(config, build_accelerator(config.train)).step == 4


def test_accumulated_gradient_is_the_mean_over_forwards(tiny_config, tmp_path):
    """Without terms that look at the whole batch, two forwards of 4 equal one of 8."""
    overrides = ["koleo.loss_weight=0", "ibot.loss_weight=0", "teacher.centering=softmax", "model.drop_path_rate=0"]
    overrides += ["optim.clip_grad=0", "train.epochs=0.5"]
    runs = []
    for batch, accumulation in ((8, 1), (4, 2)):
        config = tiny_config(
            *overrides,
            f"train.batch_size={batch}",
            f"train.gradient_accumulation_steps={accumulation}",
            f"train.output_dir={tmp_path / str(batch)}",
        )
        trainer = Trainer.from_config(config, build_accelerator(config.train))
        centering = trainer.objective.centering["dino"]
        centering.momentum = 1.0  # the centre stays 0, or the second forward would see the first
        gradients = {}
        step = trainer.training_step._optimizer.step

        def keep(trainer=trainer, gradients=gradients, step=step):
            gradients.update({n: p.grad.clone() for n, p in trainer.objective.student.named_parameters()})
            step()

        trainer.training_step._optimizer.step = keep
        trainer.run()
        runs.append(gradients)
    assert runs[0].keys() == runs[1].keys()
    for name, gradient in runs[0].items():
        torch.testing.assert_close(runs[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_each_network_is_clipped_by_itself(tiny_config):
    config = tiny_config("optim.clip_grad=0.01")
    trainer = Trainer.from_config(config, build_accelerator(config.train))
    norms = {}

    def record():
        for name, network in trainer.objective.student.items():
            gradients = [parameter.grad for parameter in network.parameters()]
            norms.setdefault(name, []).append(torch.nn.utils.get_total_norm(gradients).item())

    step = trainer.training_step._optimizer.step
    trainer.training_step._optimizer.step = lambda: (record(), step())
    trainer.run()
    assert norms.keys() == {"backbone", "dino_head", "ibot_head"}
    for name, values in norms.items():
        assert values == pytest.approx([0.01] * 6, rel=1e-3), name
    line = read_metrics(Path(config.train.output_dir))[-1]
    assert line["grad_norm/backbone"] > 0.01


def spoil(trainer, steps):
    """Makes the gradient of the given updates infinite."""
    clip = trainer.training_step._clip

    def spoiled():
        if trainer.step in steps:
            trainer.objective.student["dino_head"].last_layer.weight_v.grad[0, 0] = float("inf")
        return clip()

    trainer.training_step._clip = spoiled


def test_gradient_that_is_not_finite_never_reaches_weights_or_teacher(tiny_config, tmp_path):
    config = tiny_config("teacher.momentum=1.0")
    trainer = train(config, prepare=lambda trainer: spoil(trainer, {2}))
    assert all(torch.isfinite(value).all() for value in trainer.objective.state_dict().values())
    assert read_metrics(Path(config.train.output_dir))[-1]["skipped_updates"] == 1.0

    # a run of the same length whose every update is spoiled ends where it began
    still = tiny_config(f"train.output_dir={tmp_path / 'still'}")
    before = parameters(Trainer.from_config(still, trainer.accelerator, resume="never"))
    after = train(still, prepare=lambda trainer: spoil(trainer, set(range(6))))
    for name, value in parameters(after).items():
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_run_stops_when_no_gradient_is_finite(tiny_config):
    config = tiny_config("train.max_skipped_updates=4")
    with pytest.raises(FloatingPointError, match="not finite in 4 updates in a row.*optim.base_lr"):
        train(config, prepare=lambda trainer: spoil(trainer, set(range(6))))


def test_evaluation_comes_first_on_cadence_and_last(tiny_config):
    seen = []
    config = tiny_config()

    def evaluate(student):
        cls, patches = student(torch.zeros(3, 3, 32, 32), 2)[-1]
        seen.append((cls.shape, patches.shape))
        return {"score": 1.0}

    trainer = train(config, callbacks=[Callback(2, evaluate)])
    assert seen == [((3, 32), (3, 32, 4, 4))] * 3 and trainer.step == 6
    lines = [line["step"] for line in read_metrics(Path(config.train.output_dir)) if "score" in line]
    assert lines == [0, 4, 6]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_run_with_a_twentieth_of_broken_files_ends_and_names_them(
    tiny_config, image_folder, tmp_path, caplog, num_workers
):
    good = sorted(image_folder.rglob("*.jpg"))
    for index in range(38):
        shutil.copy(good[index % len(good)], tmp_path / f"{index:02}.jpg")
    (tmp_path / "note.jpg").write_text("not an image")
    (tmp_path / "half.jpg").write_bytes(good[0].read_bytes()[:300])
    config = tiny_config(f"data.train.path={tmp_path}", "train.epochs=12", f"data.num_workers={num_workers}")
    with caplog.at_level(logging.WARNING, logger="dinov2_hf"):
        trainer = train(config)
    assert trainer.step == 24
    for name in ("note.jpg", "half.jpg"):
        assert len([record for record in caplog.records if name in record.getMessage()]) == 1
    assert read_metrics(Path(config.train.output_dir))[-1]["broken_images"] == 2.0


def test_too_many_broken_files_stop_the_run(tiny_config, image_folder, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(image_folder, mixed)
    for index in range(12):
        (mixed / "blobs" / f"note{index}.jpg").write_text("not an image")
    config = tiny_config(f"data.train.path={mixed}", "train.epochs=100", "data.max_broken_share=0.2")
    with pytest.raises(ValueError, match="images cannot be decoded, more than data.max_broken_share=0.2.*note"):
        train(config)


def test_only_broken_files_stop_at_once(tiny_config, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.jpg").write_text("not an image")
    with pytest.raises(ValueError, match="100 images in a row cannot be decoded.*data.train.path"):
        train(tiny_config(f"data.train.path={folder}"))


def test_run_writes_a_config_that_reads_back(tiny_config):
    config = tiny_config()
    train(config, until=1)
    assert load_config(Path(config.train.output_dir) / "config.yaml") == config


def test_metrics_go_to_jsonl_tensorboard_and_a_picture(tiny_config):
    config = tiny_config()
    folder = Path(config.train.output_dir)
    train(config)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    expected = {
        "loss",
        "loss/dino_global",
        "loss/dino_local",
        "loss/ibot",
        "loss/koleo",
        "lr",
        "weight_decay",
        "teacher_temp",
    }
    assert expected | {"images_per_second", "grad_norm/backbone", "teacher_momentum"} <= lines[0].keys()
    assert list(folder.rglob("events.out.tfevents.*"))
    assert plot_metrics(folder).stat().st_size > 10_000


def test_half_precision_run_keeps_float32_weights(tiny_config):
    trainer = train(tiny_config("train.precision=bf16"))
    assert {value.dtype for value in trainer.objective.state_dict().values()} == {torch.float32}
    assert trainer.step == 6


def test_fp16_without_a_gpu_is_refused(tiny_config):
    if torch.cuda.is_available():
        return
    with pytest.raises(ValueError, match="train.precision=fp16 needs a CUDA GPU"):
        build_accelerator(tiny_config("train.precision=fp16").train)
