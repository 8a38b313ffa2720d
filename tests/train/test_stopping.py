"""Ctrl-C and SIGTERM: what a run saves, and that it goes on to the same end."""

import os
import signal

import pytest
import torch
from accelerate.state import AcceleratorState

from dinov2_hf import pretrain
from dinov2_hf.api.training import Training
from dinov2_hf.runs.checkpoint import find_checkpoints, remove_checkpoint
from dinov2_hf.train import Callback
from dinov2_hf.train.stopping import StopSignals

from .running import train


def sending(*updates, number=signal.SIGINT):
    """Makes a run receive a signal at the start of each of some updates, counted from 1."""
    left = list(updates)

    def prepare(trainer):
        next_batch = trainer._next_batch

        def interrupted(loader):
            while left and trainer.step + 1 == left[0]:
                left.pop(0)
                os.kill(os.getpid(), number)
            return next_batch(loader)

        trainer._next_batch = interrupted

    return prepare


def steps_saved(trainer):
    return [int(path.name[-8:]) for path in find_checkpoints(trainer.checkpoints)]


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_stopped_run_saves_after_its_update_and_ends_as_the_uninterrupted_one(
    tiny_config, tmp_path, capfd, number, name
):
    whole = train(tiny_config(f"train.output_dir={tmp_path / 'whole'}"))
    config = tiny_config()
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    stopped = train(config, prepare=sending(3, number=number))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert stopped.stopped and stopped.stopped_by == number and stopped.step == 3 and steps_saved(stopped)[-1] == 3
    said = capfd.readouterr()
    saved = f"{config.train.output_dir}/checkpoints/step-00000003"
    assert f"stopped by {name} after update 3; saved {saved}, launch again to continue\n" in said.out
    assert said.err.count("press Ctrl-C again to end at once") == (number == signal.SIGINT)
    again = train(config)
    assert not again.stopped and again.step == 6
    expected = whole.objective.state_dict()
    assert [key for key, value in again.objective.state_dict().items() if not torch.equal(value, expected[key])] == []


def test_a_second_ctrl_c_ends_at_once_without_saving(tiny_config):
    trainer = train(tiny_config(), prepare=sending(4, 4))
    assert not trainer.stopped and trainer.step == 3 and steps_saved(trainer) == [2]


def test_ctrl_c_after_sigterm_does_not_change_why_the_run_stopped(tiny_config):
    def both(trainer):
        sending(2, number=signal.SIGINT)(trainer)
        sending(2, number=signal.SIGTERM)(trainer)  # is sent first

    assert train(tiny_config(), prepare=both).stopped_by == signal.SIGTERM


def test_a_signal_in_the_last_update_lets_the_run_end(tiny_config):
    trainer = train(tiny_config(), prepare=sending(6))
    assert not trainer.stopped and trainer.step == 6


def test_ctrl_c_ends_the_script_that_called_after_the_run_has_saved(tiny_overrides, tmp_path):
    stop = Callback(0.5, act=lambda step, results: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
    with pytest.raises(KeyboardInterrupt):
        pretrain(keys=tiny_overrides, callbacks=[stop])
    assert [path.name for path in find_checkpoints(tmp_path / "run" / "checkpoints")][-1] == "step-00000003"
    assert not (tmp_path / "run" / "export").exists() and not (tmp_path / "run" / ".lock").exists()


def test_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        signals = StopSignals()
        with signals.watching():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_ends_at_once_after_ctrl_c_under_torchrun(monkeypatch):
    """At the second Ctrl-C torchrun sends that one, as `benchmarks/stopped_runs.py` shows."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals(speaks=False)
    with signals.watching():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT and signal.getsignal(signal.SIGTERM) == before


# ---------------------------------------------------------------------------------------------------- the folder's lock


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(tiny_config, tmp_path):
    config, refused = tiny_config(), []

    def launch_again(step, results):
        with pytest.raises(ValueError, match=f"run is in use by another run: process {os.getpid()} on ") as error:
            Training(config)
        refused.append(error)

    trainer = train(config, callbacks=[Callback(1, act=launch_again)])
    assert (
        len(refused) == 2
        and trainer.step == 6
        and [line["step"] for line in trainer.run_folder.read_metrics()]
        == [
            2,
            4,
            6,
        ]
    )
    assert not trainer.run_folder.lock.path.exists()


def test_the_folder_stays_locked_until_the_export_is_written(tiny_config, monkeypatch):
    from dinov2_hf.api import training

    config, held, write = tiny_config(), [], training.export_folder

    def export(*args):
        held.append((training.RunFolder(config.train.output_dir).lock.path).exists())
        return write(*args)

    monkeypatch.setattr(training, "export_folder", export)
    done = Training(config).run(end=False)
    assert held == [True] and not (done.folder / ".lock").exists()


# ------------------------------------------------------------------------------------------------- removed checkpoints


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_by_its_name_and_the_rest_goes(tiny_config, monkeypatch):
    config = tiny_config("train.keep_checkpoints=1")

    def kill(path, **settings):
        assert path.name == "removing-00000002"
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dinov2_hf.runs.checkpoint.shutil.rmtree", lambda path, ignore_errors=False: None)
        trainer = train(config, until=3)
        patch.setattr(
            "dinov2_hf.runs.checkpoint.shutil.rmtree",
            lambda path, ignore_errors=False: None if ignore_errors else kill(path),
        )
        with pytest.raises(KeyboardInterrupt):
            remove_checkpoint(trainer.checkpoints / "step-00000002")
    assert [path.name for path in trainer.checkpoints.iterdir()] == ["removing-00000002"]
    AcceleratorState._reset_state(reset_partial_state=True)
    train(config)
    assert [path.name for path in trainer.checkpoints.iterdir()] == ["step-00000006"]
