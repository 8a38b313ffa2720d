"""The training loop: one update after the other, with logs, checkpoints and evaluations on cadence."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from ..config import PretrainConfig, save_config
from ..data import PhotometricAugmentation, TrainingBatches, build_loader, open_training_source
from ..ssl import DINOv2Pretraining, SSLBatch
from .checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from .metrics import MeanMetrics, MetricLog
from .param_groups import apply_schedule, build_param_groups
from .schedules import StepValues, build_schedules, values_at

logger = logging.getLogger(__name__)

Evaluate = Callable[[DINOv2Pretraining], dict[str, float]]

_STOCHASTIC_DEPTH = 3  # keeps this random stream apart from those of the data
_MIN_READ_BEFORE_STOP = 200


class Pretrainer:
    """A pretraining run: `Pretrainer(config, accelerator).run()`.

    Args:
        config: the checked configuration.
        accelerator: from `build_accelerator`.
        evaluate: called with the model at the start, every `knn.epochs` and at the end; its numbers are logged.
            Collective: called on all ranks.
        resume: `auto` continues from the newest checkpoint in `train.output_dir` if there is one, `never` refuses a
            folder that has one, and a path continues from that checkpoint.
    """

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        evaluate: Evaluate | None = None,
        resume: str = "auto",
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.evaluate = evaluate
        self.folder = Path(config.train.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        train = config.train
        self.accumulation = train.gradient_accumulation_steps
        self.global_batch_size = train.batch_size * accelerator.num_processes * self.accumulation
        self.schedules = build_schedules(config, self.global_batch_size)
        self.source = open_training_source(config.data.train, train.seed, config.data.shuffle_buffer)
        self.augment = PhotometricAugmentation(config.colors)

        torch.manual_seed(train.seed)
        self.model = DINOv2Pretraining(config)
        groups = build_param_groups(
            self.model.student.named_parameters(),
            self.model.student["backbone"].config.num_hidden_layers,
            config.optim.layerwise_decay,
            config.optim.patch_embed_lr_mult,
        )
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(config.optim.betas), fused=True)
        self.prepared, self.optimizer = accelerator.prepare(self.model, optimizer)

        self.step = 0
        """Updates made so far."""
        self._resume(resume)
        self.broken: set[str] = set()
        self._broken_reads = self._reads = 0
        self._skipped = torch.zeros((), device=accelerator.device)
        self._skipped_in_a_row = torch.zeros((), device=accelerator.device)

    def run(self) -> DINOv2Pretraining:
        """Trains to the end, saves a checkpoint there and returns the model."""
        config, accelerator = self.config, self.accelerator
        total = config.train.num_steps
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.yaml")
        accelerator.wait_for_everyone()
        log = MetricLog(self.folder, accelerator, self.step)
        checkpoint_steps = max(round(config.train.checkpoint_epochs * config.train.epoch_length), 1)
        evaluate_steps = max(round(config.knn.epochs * config.train.epoch_length), 1)

        batches = TrainingBatches(
            self.source,
            config,
            start=self.step * self.accumulation,
            stop=total * self.accumulation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        loader = iter(build_loader(batches, config.data.num_workers, accelerator.device.type == "cuda"))
        progress = tqdm(
            total=total * self.global_batch_size,
            initial=self.step * self.global_batch_size,
            desc="Pretraining",
            unit="img",
            unit_scale=True,
            disable=not accelerator.is_main_process,
        )
        shown: dict[str, str] = {}
        if self.step == 0:
            self._evaluate(log, shown)
        means = MeanMetrics()
        since, since_step = time.perf_counter(), self.step
        while self.step < total:
            values = values_at(self.schedules, self.step)
            means.add(self._update(loader, values))
            self.step += 1
            progress.update(self.global_batch_size)
            if self.step % config.train.log_every == 0 or self.step == total:
                scalars = means.read(accelerator)
                self._check_health(scalars)
                images = (self.step - since_step) * self.global_batch_size
                scalars["images_per_second"] = images / (time.perf_counter() - since)
                scalars["epoch"] = self.step / config.train.epoch_length
                log.write(self.step, scalars | vars(values))
                shown["loss"] = f"{scalars['loss']:.3f}"
                progress.set_postfix(shown)
                since, since_step = time.perf_counter(), self.step
            if self.step % evaluate_steps == 0 or self.step == total:
                self._evaluate(log, shown)
                progress.set_postfix(shown)
                since, since_step = time.perf_counter(), self.step
            if self.step % checkpoint_steps == 0 or self.step == total:
                self._save()  # last, so that a run that is killed in between makes up for the evaluation
        progress.close()
        accelerator.end_training()
        return self.model

    def _update(self, loader, values: StepValues) -> dict[str, Tensor]:
        """One update of student and teacher; the scalars to log stay on the device."""
        accelerator = self.accelerator
        apply_schedule(self.optimizer.param_groups, values)
        self.prepared.train()
        scalars: dict[str, Tensor] = {}
        for micro in range(self.accumulation):
            batch = self._next_batch(loader)
            self._seed_forward(micro)
            last = micro == self.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.prepared):
                output = self.prepared(batch, values.teacher_temp)
                accelerator.backward(output.loss / self.accumulation)
            for name, value in {"loss": output.loss.detach(), **output.terms}.items():
                share = value / self.accumulation
                scalars[name] = scalars[name] + share if name in scalars else share
        scalars |= self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.update_teacher(values.teacher_momentum)
        return scalars

    def _clip(self) -> dict[str, Tensor]:
        """Clips the gradient of each network by itself, and makes the optimiser skip one that is not finite."""
        self.accelerator.unscale_gradients()
        limit = self.config.optim.clip_grad or float("inf")
        norms = {
            f"grad_norm/{name}": torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
            for name, network in self.model.student.items()
        }
        skip = (~torch.isfinite(torch.stack(list(norms.values()))).all()).float()
        if self.accelerator.scaler is None:  # in fp16 the gradient scaler does the same
            self.optimizer.optimizer.found_inf = skip
        self._skipped += skip
        self._skipped_in_a_row = (self._skipped_in_a_row + skip) * skip
        return {name: torch.nan_to_num(norm, nan=0.0, posinf=0.0) for name, norm in norms.items()}

    def _seed_forward(self, micro: int) -> None:
        """Stochastic depth is drawn from `(seed, step, forward, rank)`, so a resumed run draws the same."""
        entropy = [self.config.train.seed, _STOCHASTIC_DEPTH, self.step, micro, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _next_batch(self, loader) -> SSLBatch:
        """The next batch on the device, coloured; unreadable images are counted and named."""
        batch: SSLBatch = next(loader)
        self._reads += batch.num_images + len(batch.broken)
        self._broken_reads += len(batch.broken)
        for message in batch.broken:
            if message not in self.broken:
                self.broken.add(message)
                logger.warning("skipped an image that cannot be decoded: %s", message)
        limit = self.config.data.max_broken_share
        if self._broken_reads > limit * max(self._reads, _MIN_READ_BEFORE_STOP):
            raise ValueError(
                f"{self._broken_reads} of {self._reads} images cannot be decoded, more than "
                f"data.max_broken_share={limit}; the last: {batch.broken[-1]}; mend the data or raise the share"
            )
        return self.augment(batch.to(self.accelerator.device, non_blocking=True))

    def _check_health(self, scalars: dict[str, float]) -> None:
        """Adds the counts of skipped updates and images to `scalars`; stops a run that makes no progress."""
        scalars["skipped_updates"] = self._skipped.item()
        scalars["broken_images"] = float(len(self.broken))
        in_a_row = int(self._skipped_in_a_row.item())
        if in_a_row >= self.config.train.max_skipped_updates:
            raise FloatingPointError(
                f"the gradient was not finite in {in_a_row} updates in a row (train.max_skipped_updates="
                f"{self.config.train.max_skipped_updates}); none of them reached the weights; lower optim.base_lr, "
                "lengthen optim.warmup_epochs or use train.precision=fp32, and resume from the last checkpoint"
            )

    def _evaluate(self, log: MetricLog, shown: dict[str, str]) -> None:
        if self.evaluate is None:
            return
        self.prepared.eval()
        results = self.evaluate(self.model)
        log.write(self.step, results)
        shown.update({name: f"{value:.1f}" for name, value in results.items()})
        if self.accelerator.is_main_process:
            tqdm.write(f"update {self.step}: " + ", ".join(f"{name} {value:.2f}" for name, value in results.items()))

    def _save(self) -> None:
        save_checkpoint(
            self.checkpoints,
            self.step,
            self.model,
            self.optimizer.optimizer,
            self.config,
            self.global_batch_size,
            self.accelerator,
        )

    def _resume(self, resume: str) -> None:
        found = find_checkpoints(self.checkpoints)
        if resume == "never" and found:
            raise ValueError(
                f"{self.checkpoints} holds a run up to update {int(found[-1].name.removeprefix('step-'))}; "
                "to start anew give another train.output_dir or remove that folder, to continue use --resume auto"
            )
        if resume in ("auto", "never"):
            if not found:
                return
            path = found[-1]
        else:
            path = Path(resume)
        self.step = load_checkpoint(path, self.model, self.optimizer.optimizer, self.config, self.global_batch_size)
        if self.accelerator.is_main_process:
            logger.info("continuing from %s", path)
