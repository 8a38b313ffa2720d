"""The training loop: one update after the other, with logs, checkpoints and evaluations on cadence."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..backbones import Layers
from ..config import RunConfig
from ..config.shorthand import describe_long_lengths
from ..data import (
    PhotometricAugmentation,
    SSLBatch,
    TrainingBatches,
    batch_bytes,
    build_loader,
    check_shared_memory,
    check_source,
    open_training_source,
    reading_advice,
)
from ..data.paths import shown as shown_path
from ..data.sources import TrainingSource
from ..launcher import follow_launcher
from ..objectives import Objective, backbone_of
from ..runs import RunFolder
from ..runs.checkpoint import (
    RunState,
    load_checkpoint,
    read_state,
    save_checkpoint,
    step_of,
)
from ..runs.metrics import MeanMetrics, MetricLog
from ..runs.provenance import environment_changes, listing_changes
from ..runs.together import on_main
from .accelerator import describe_compute
from .broken import BrokenLog
from .build import build_objective
from .callbacks import Callback, Results, StudentFeatures
from .health import CollapseWatch
from .initialize import initialize
from .schedules import StepValues, build_schedules, values_at
from .step import TrainingStep
from .stopping import NAMES, StopSignals

logger = logging.getLogger(__name__)


class Trainer:
    """A run: `Trainer(objective, source, config, accelerator).run()`.

    Args:
        objective: with fresh weights; from `build_objective`, or one of your own.
        source: the images; from `open_training_source`, or one of your own.
        config: the checked configuration.
        accelerator: from `build_accelerator`.
        callbacks: what is measured and done during the run.
        resume: `auto` continues from the newest checkpoint in `train.output_dir` if there is one, `never` refuses a
            folder that has one, and a path continues from that checkpoint.

    Raises:
        ValueError, FileNotFoundError: what a user can fix, said in one line.
        OSError: the output folder cannot be written.
    """

    def __init__(
        self,
        objective: Objective[Any],
        source: TrainingSource,
        config: RunConfig,
        accelerator: Accelerator,
        callbacks: Sequence[Callback] = (),
        resume: str = "auto",
    ) -> None:
        check_source(source)
        self.objective = objective
        self.source = source
        self.config = config
        self.accelerator = accelerator
        self.callbacks = callbacks
        self.run_folder = RunFolder(config.train.output_dir)
        self.folder, self.checkpoints = self.run_folder.path, self.run_folder.checkpoints
        train = config.train
        self.accumulation = train.gradient_accumulation_steps
        self.global_batch_size = train.batch_size * accelerator.num_processes * self.accumulation
        self.checkpoint_steps = max(round(train.checkpoint_epochs * train.epoch_length), 1)
        advice = reading_advice(self.source, train.batch_size, config.data.num_workers, accelerator.num_processes)
        if advice and accelerator.is_main_process:
            logger.info(advice)
        if accelerator.is_main_process and (too_long := describe_long_lengths(config)):
            logger.warning(too_long)
        check_shared_memory(
            batch_bytes(config), config.data.num_workers, train.num_steps * self.accumulation, "data.num_workers"
        )
        self.augment = PhotometricAugmentation(config.colors)

        if resume == "never":
            self._refuse_old_run()
            resume = "auto"
        checkpoint, self._damaged = self.run_folder.choose_checkpoint(resume)
        if accelerator.is_main_process:
            compiled = any(model.compile for model in config.models.values())
            backbones = [backbone_of(networks.student) for networks in objective.networks.values()]
            logger.info(describe_compute(accelerator, backbones, compiled))
        head_warmup_steps = 0
        if checkpoint is not None:
            head_warmup_steps = read_state(checkpoint)[0].head_warmup_steps
        elif config.init.path and initialize(objective, config.init):
            head_warmup_steps = round(config.init.head_warmup_epochs * train.epoch_length)
        self.training_step = TrainingStep(objective, config, accelerator, head_warmup=head_warmup_steps > 0)
        self.state = RunState(0, self.global_batch_size, head_warmup_steps, listing=self._listing())
        if checkpoint is not None:
            self._load(checkpoint)
        scheduled = objective.schedules_of(config)
        self.schedules = build_schedules(config, scheduled, self.global_batch_size, self.state.head_warmup_steps)

        self.stopped_by: signal.Signals | None = None
        """The signal, Ctrl-C or SIGTERM, that ended the run before its end; a checkpoint was saved then."""
        self.broken = BrokenLog(self.folder, accelerator, self.state.broken, self.state.reads)
        self._said_shallow = False
        self._collapse = CollapseWatch(train.num_steps, config.optim.lr_key)
        self._signals = StopSignals(accelerator.is_main_process)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        accelerator: Accelerator,
        callbacks: Sequence[Callback] = (),
        resume: str = "auto",
    ) -> Trainer:
        """Makes the trainer of a run whose source and objective are those that the configuration names."""
        source = open_training_source(config.data, config.train.seed)
        return cls(build_objective(config), source, config, accelerator, callbacks, resume)

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.state.step

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run before its end."""
        return self.stopped_by is not None

    def run(self) -> Results:
        """Trains to the end, or until Ctrl-C or SIGTERM, and saves a checkpoint there; holds the folder meanwhile.

        Returns:
            The networks of each student's average, such as `backbone` and `dino_head`. Where parameters are
            sharded, whole copies on the main process and nothing on the others.
        """
        follow_launcher()
        with self.locked(), self._signals.watching():
            return self._run()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other runs out of the folder during the block; may be nested. Collective.

        Raises:
            ValueError: another run writes into the folder.
            OSError: the folder cannot be written.
        """
        with contextlib.ExitStack() as held:
            on_main(lambda: self._lock(held))
            yield

    def _lock(self, held: contextlib.ExitStack) -> None:
        with self._naming_folder():
            held.enter_context(self.run_folder.lock)

    @contextlib.contextmanager
    def _naming_folder(self) -> Iterator[None]:
        """Says what to do where the folder cannot be written."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"train.output_dir={self.folder} cannot be written: {error}; fix that or give another folder"
            ) from error

    def _run(self) -> Results:
        config, accelerator, state = self.config, self.accelerator, self.state
        train = config.train
        total = train.num_steps
        if accelerator.is_main_process:
            with self._naming_folder():
                self.run_folder.write_config(config)
            self.run_folder.clean_checkpoints(self._damaged)
            self.broken.write()
        accelerator.wait_for_everyone()
        log = MetricLog(self.folder, accelerator, state.step)
        if accelerator.is_main_process:
            for line in self.run_folder.read_metrics():
                self._collapse.look(line)  # what was said before the run was interrupted

        loader = self.open_loader(total)
        with tqdm(
            total=total * self.global_batch_size,
            initial=state.step * self.global_batch_size,
            desc=self.objective.label,
            unit="img",
            unit_scale=True,
            disable=not accelerator.is_main_process,
        ) as progress:
            self._train(loader, log, progress)
        results = self._results()
        for tracker in accelerator.trackers:  # the processes may have more to do together
            tracker.finish()
        return results

    def open_loader(self, stop: int) -> Iterator[SSLBatch]:
        """The batches of this process from the next update to update `stop`."""
        batches = TrainingBatches(
            self.source,
            self.config,
            start=self.step * self.accumulation,
            stop=stop * self.accumulation,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        data, pin_memory = self.config.data, self.accelerator.device.type == "cuda"
        return iter(build_loader(batches, data.num_workers, pin_memory, data.start_method))

    def update(self, loader: Iterator[SSLBatch], diagnose: bool = False) -> tuple[dict[str, Tensor], StepValues]:
        """Makes one update. Returns its scalars and the values of the schedules. Collective."""
        values = values_at(self.schedules, self.step)
        scalars = self.training_step(lambda: self._next_batch(loader), values, self.step, diagnose=diagnose)
        self.state.step += 1
        return scalars, values

    def _train(self, loader: Iterator[SSLBatch], log: MetricLog, progress: tqdm[Any]) -> None:
        accelerator, state, train = self.accelerator, self.state, self.config.train
        total = train.num_steps
        shown: dict[str, str] = {}
        means = MeanMetrics()
        means.load(state.means, accelerator)
        if not self._on_any_process(log.evaluated):
            self._measure(log, shown)
        self._act()
        since, since_step = time.perf_counter(), state.step
        while state.step < total and not self.stopped:
            logged = (state.step + 1) % train.log_every == 0 or state.step + 1 == total
            scalars, values = self.update(loader, diagnose=logged)
            means.add(scalars)
            progress.update(self.global_batch_size)
            if logged or accelerator.num_processes == 1:
                self.broken.merge()
                self.broken.check(self.config.data.max_broken_share)
                self.broken.check_shards(self.config.data.max_broken_shards, self.source.num_shards)
                self.stopped_by = self._signal_on_any_process() if state.step < total else None
            if logged:
                line = means.read(accelerator)
                self._check_health(line)
                images = (state.step - since_step) * self.global_batch_size
                line["images_per_second"] = images / (time.perf_counter() - since)
                line["epoch"] = state.step / train.epoch_length
                log.write(state.step, line | vars(values))
                shown["loss"] = f"{line['loss']:.3f}"
                progress.set_postfix(shown)
                since, since_step = time.perf_counter(), state.step
            if self.stopped or state.step % self.checkpoint_steps == 0 or state.step == total:
                self._save(means, log)
            if not self.stopped:  # after the checkpoint: a run that continues from it begins with them
                if self._measure(log, shown):
                    progress.set_postfix(shown)
                    since, since_step = time.perf_counter(), state.step
                self._act()

    def _signal_on_any_process(self) -> signal.Signals | None:
        """The signal that stops the run, received by any process; waits for the device as `_on_any_process` does."""
        received = self._signals.received
        if self.accelerator.num_processes == 1:
            return received
        counts = torch.tensor([float(received == number) for number in NAMES], device=self.accelerator.device)
        counts = self.accelerator.reduce(counts)
        return next((number for number, count in zip(NAMES, counts.tolist()) if count), None)

    def _on_any_process(self, condition: bool) -> bool:
        """Whether `condition` holds on any process. Collective, and where there are several it waits for the device."""
        if self.accelerator.num_processes == 1:
            return condition
        total = self.accelerator.reduce(torch.tensor(float(condition), device=self.accelerator.device))
        return bool(total.item() > 0)

    def _act(self) -> None:
        """Calls the callbacks that act where they are due after this update, but at the start and the end."""
        due = [callback.act for callback in self.callbacks if callback.act and self._is_due(callback)]
        if due and 0 < self.step < self.config.train.num_steps:
            results = self._results()
            if self.accelerator.is_main_process:
                for act in due:
                    act(self.step, results)

    def _results(self) -> Results:
        return {student: self._whole_average(student) for student in self.objective.networks}

    def _whole_average(self, student: str) -> dict[str, nn.Module]:
        """The networks of a student's average, not sharded, on the main process; the others get none. Collective."""
        average = dict(self.objective.networks[student].average.items())
        if not isinstance(self.objective, FSDPModule):
            return average
        main = self.accelerator.is_main_process
        whole = cast(dict[str, nn.Module], self.objective.build_networks(student, 0.0) if main else {})
        for name, network in average.items():
            target = whole[name].state_dict() if main else {}
            for key, shard in network.state_dict().items():
                tensor = shard.full_tensor() if isinstance(shard, DTensor) else shard  # buffers are whole
                if main:
                    target[key].copy_(tensor)
        return whole

    def _next_batch(self, loader: Iterator[SSLBatch]) -> SSLBatch:
        """The next batch on the device, coloured; what is broken is counted."""
        batch: SSLBatch = next(loader)
        self.broken.add(batch)
        if batch.shallow and self.accelerator.is_main_process and not self._said_shallow:
            self._said_shallow = True
            logger.warning(
                "%s has 16 bits and no value above 4,095: nearly black; if the images have 12 bits, set data.bits=12 "
                "in a new run; `dinov2-hf data stats` counts them",
                shown_path(batch.shallow[0]),
            )
        return self.augment(batch.to(self.accelerator.device, non_blocking=True))

    def _check_health(self, scalars: dict[str, float]) -> None:
        """Adds the counts of skipped updates and images; warns of collapse and stops a run without progress."""
        skipped, in_a_row = self.training_step.counters.tolist()
        scalars["skipped_updates"] = skipped
        scalars |= self.broken.counts
        if self.accelerator.is_main_process:
            for warning in self._collapse.look(scalars | {"step": self.step}):
                logger.warning("update %d: %s", self.step, warning)
        if in_a_row >= self.config.train.max_skipped_updates:
            raise FloatingPointError(
                f"the gradient was not finite in {in_a_row:.0f} updates in a row (train.max_skipped_updates="
                f"{self.config.train.max_skipped_updates}); none of them reached the weights; lower "
                f"{self.config.optim.lr_key}, lengthen optim.warmup_epochs or use train.precision=fp32, and resume "
                "from the last checkpoint"
            )

    def _is_due(self, callback: Callback) -> bool:
        train = self.config.train
        every = max(round(callback.epochs * train.epoch_length), 1)
        return self.step % every == 0 or self.step == train.num_steps

    def _measure(self, log: MetricLog, shown: dict[str, str]) -> bool:
        """Measures and logs what is due after this update. Returns whether anything was. Collective."""
        due = [callback for callback in self.callbacks if callback.measure and self._is_due(callback)]
        if not due:
            return False
        self.objective.eval()
        results: dict[str, float] = {}
        for student, networks in self.objective.networks.items():
            backbone, prefix = backbone_of(networks.average), f"{student}." if student else ""
            for callback in due:
                measured: dict[str, Layers] = {"": partial(self.objective.features, student=student)}
                if callback.student:
                    measured["/student"] = partial(self.objective.features, student=student, average=False)
                for suffix, layers in measured.items():
                    features = StudentFeatures(student, layers, backbone.width, backbone.stride, len(backbone.blocks))
                    found = callback.measure(features) if callback.measure else {}
                    results |= {f"{prefix}{name}{suffix}": value for name, value in found.items()}
        if isinstance(self.objective, FSDPModule):
            self.objective.reshard()  # what is gathered for a forward stays so until the next backward
        log.write(self.step, results)
        shown.update({name: f"{value:.1f}" for name, value in results.items()})
        if self.accelerator.is_main_process:
            tqdm.write(f"update {self.step}: " + ", ".join(f"{name} {value:.2f}" for name, value in results.items()))
        return True

    def _save(self, means: MeanMetrics, log: MetricLog) -> None:
        log.sync()
        self.broken.merge()
        self.state.broken, self.state.reads = self.broken.state
        self.state.means = means.state(self.accelerator)
        train, accelerator, step = self.config.train, self.accelerator, self.training_step
        self.state.counters = step.counters.tolist()
        self.state.scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
        saved = save_checkpoint(self.checkpoints, self.state, self.objective, step.optimizer, self.config, accelerator)
        if accelerator.is_main_process:
            self.run_folder.prune_checkpoints(train.keep_checkpoints, train.keep_every, self.checkpoint_steps)
            if self.stopped_by is not None:
                name = NAMES[self.stopped_by]
                tqdm.write(f"stopped by {name} after update {self.step}; saved {saved}, launch again to continue")

    def _listing(self) -> dict[str, dict[str, Any]]:
        return {name: dict(made) for name, made in self.source.listing().items()}

    def _refuse_old_run(self) -> None:
        if found := self.run_folder.find_checkpoints():
            raise ValueError(
                f"{self.checkpoints} holds a run up to update {step_of(found[-1])}; "
                "to start again give another train.output_dir or remove that folder, to continue use --resume auto"
            )

    def _load(self, path: Path) -> None:
        step, accelerator = self.training_step, self.accelerator
        self.state = load_checkpoint(path, self.objective, step.optimizer, self.config, self.global_batch_size)
        step.counters = torch.tensor(self.state.counters, device=accelerator.device)
        if accelerator.scaler and self.state.scaler:
            accelerator.scaler.load_state_dict(self.state.scaler)
        now = self._listing()
        if accelerator.is_main_process:
            logger.info("continuing from %s", path)
            if changes := environment_changes(path, accelerator):
                logger.info("not bit for bit as without the stop, for another environment: %s", "; ".join(changes))
            for change in listing_changes(self.state.listing, now):
                logger.warning("%s; what follows is not what it would have been with the same files", change)
        self.state.listing = now
