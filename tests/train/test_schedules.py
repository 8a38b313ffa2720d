"""Schedules of a run from its configuration."""

import pytest

from dinov2_hf.config import DINOv2RunConfig
from dinov2_hf.objectives import DINOv2
from dinov2_hf.train.schedules import Schedule, build_schedules, values_at


def config(**train):
    run = DINOv2RunConfig()
    run.train.epochs, run.train.epoch_length = 10, 20
    run.optim.warmup_epochs, run.optim.freeze_last_layer_epochs = 2, 0.5
    run.teacher.warmup_temp_epochs = 3
    return run


def schedules_of(run, global_batch, head_warmup_steps=0):
    return build_schedules(run, DINOv2.schedules_of(run), global_batch, head_warmup_steps)


def test_learning_rate_follows_the_square_root_of_the_global_batch():
    for batch, factor in ((1024, 1.0), (256, 0.5), (4096, 2.0)):
        schedules = schedules_of(config(), batch)
        assert max(schedules["lr"][step] for step in range(200)) == pytest.approx(0.004 * factor)


def test_linear_rule_counts_the_global_batch_in_steps_of_256():
    for batch, factor in ((256, 1.0), (64, 0.25), (4096, 16.0)):
        run = config()
        run.optim.lr_rule = "linear"
        schedules = schedules_of(run, batch)
        assert max(schedules["lr"][step] for step in range(200)) == pytest.approx(0.004 * factor)
        assert schedules["lr"][200] == 1e-6  # which does not grow


def momenta(update):
    run = config()
    run.teacher.update = update
    return [values_at(schedules_of(run, 1024), step).teacher_momentum for step in range(201)]


def test_teacher_of_the_epoch_before_is_copied_at_the_end_of_every_epoch():
    found = momenta("previous_epoch")
    assert [step for step, momentum in enumerate(found) if momentum == 0] == list(range(19, 200, 20))
    assert set(found) == {0.0, 1.0}


def test_teacher_of_the_update_before_is_copied_at_every_update():
    assert set(momenta("previous_update")) == {0.0}


def test_prototypes_are_frozen_for_the_configured_epochs():
    schedules = schedules_of(config(), 1024)
    frozen = [schedules["last_layer_lr"][step] for step in range(10)]
    assert frozen == [0.0] * 10
    assert all(schedules["last_layer_lr"][step] == schedules["lr"][step] for step in range(10, 200))


def test_values_start_and_end_where_configured():
    schedules = schedules_of(config(), 1024)
    first, last, after = (values_at(schedules, step) for step in (0, 199, 200))
    assert first.lr == 0.0 and first.teacher_momentum == pytest.approx(0.992)
    assert first.weight_decay == pytest.approx(0.04) and first.teacher_temp == pytest.approx(0.04)
    assert last.teacher_momentum == pytest.approx(1.0, abs=1e-5) and last.lr < 1e-5
    assert (after.lr, after.weight_decay, after.teacher_momentum, after.teacher_temp) == (1e-6, 0.4, 1.0, 0.07)
    assert values_at(schedules, 59).teacher_temp == pytest.approx(0.07)


def test_warm_up_longer_than_the_run_is_cut():
    schedule = Schedule(1.0, 0.0, total_steps=4, warmup_steps=10)
    assert [schedule[step] for step in range(5)] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0, 0.0])


def test_schedule_without_steps_is_its_final_value():
    assert Schedule(1.0, 0.5, total_steps=0)[0] == 0.5


@pytest.mark.parametrize("head_warmup_steps", [0, 6])
def test_backbone_follows_the_learning_rate_where_no_head_is_warmed_up(head_warmup_steps):
    schedules = schedules_of(config(), 1024, head_warmup_steps)
    scales = [values_at(schedules, step).backbone_lr_scale for step in range(201)]
    if head_warmup_steps:
        assert scales[:6] == [0.0] * 6 and scales[46:] == [1.0] * 155  # 40 updates of learning-rate warm-up
    else:
        assert scales == [1.0] * 201


@pytest.mark.parametrize(
    ("head_warmup_steps", "warmup_epochs", "expected"),
    [
        (2, 0.1, [0, 0, 1 / 3, 1, 1]),
        (2, 0.2, [0, 0, 0.1, 0.4, 0.7, 1, 1]),
        (1, 0.25, [0, 0.04, 0.28, 0.52, 0.76, 1, 1]),
        (3, 0.05, [0, 0, 0, 1, 1]),
        (3, 0, [0, 0, 0, 1, 1]),  # without a warm-up of the learning rate at once
    ],
)
def test_backbone_stands_still_then_its_scale_rises_on_a_straight_line(head_warmup_steps, warmup_epochs, expected):
    """A line from -h / r at the first update to 1 at the end of the rise, h updates frozen and r rising; 0 before."""
    run = config()
    run.optim.warmup_epochs = warmup_epochs
    schedules = schedules_of(run, 1024, head_warmup_steps)
    found = [schedules["backbone_lr_scale"][step] for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[:head_warmup_steps] == [0.0] * head_warmup_steps
    assert schedules["backbone_lr_scale"][10_000] == 1.0


def test_head_warm_up_changes_no_other_schedule():
    plain, warmed = schedules_of(config(), 1024), schedules_of(config(), 1024, 6)
    assert plain.keys() == warmed.keys()
    for name in plain.keys() - {"backbone_lr_scale"}:
        assert [plain[name][step] for step in range(210)] == [warmed[name][step] for step in range(210)]
