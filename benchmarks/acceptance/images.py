"""From files to crops to updates, and from files to features."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from transformers import pipeline

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.data import (
    EvalTransform,
    PhotometricAugmentation,
    TrainingBatches,
    build_loader,
    open_training_source,
    preprocessor_config,
)
from dinov2_hf.features import gather_features, open_backbone
from dinov2_hf.runs import read_metrics
from dinov2_hf.runs.checkpoint import save_checkpoint
from dinov2_hf.train import Trainer
from dinov2_hf.weights.folder import write_folder

from .context import Context, rounded
from .machine import device, num_cores, on_cuda, reset_memory, synchronize, timed
from .setups import case_config, photographs, prepare

_BATCH = 64


def data(context: Context) -> None:
    """The loader on all cores but one, the work of the device on a batch, and a whole run of the trainer."""
    workers = context.size(max(num_cores() - 1, 1), 1)
    sizes = (("500 x 375", 500, 375, 512, 60), ("1500 x 1125", 1500, 1125, 96, 24))
    for name, width, height, files, batches in context.size(sizes, (("100 x 75", 100, 75, 8, 2),)):
        with context.case("loader", images=name, workers=workers) as row:
            folder = photographs(context, f"photographs-{width}", files, width, height)
            config = case_config(context, "S64", f"data.train.path={folder}")
            batch = _read(config, workers, batches, row)
        if name == sizes[0][0] or context.tiny:
            augment = PhotometricAugmentation(config.colors)
            with context.case("batch on the device", batch=batch.num_images) as row:
                copies = timed(lambda: batch.to(device(), non_blocking=True), context.size(10, 1), 1)  # noqa: B023
                placed = batch.to(device())
                row |= {"copy_ms": copies["ms"], **timed(lambda: augment(placed), context.size(10, 1), 1)}  # noqa: B023
    _whole_run(context, workers)


def _read(config, workers: int, batches: int, row: dict):
    """Times batches after those that the workers had ready."""
    ahead = 2 * workers
    source = open_training_source(config.data, 0)
    loader = build_loader(TrainingBatches(source, config, 0, batches + 2 * ahead), workers, on_cuda())
    started, loader = time.perf_counter(), iter(loader)
    next(loader)
    row["first_s"] = rounded(time.perf_counter() - started)
    for _ in range(ahead):
        next(loader)
    started = time.perf_counter()
    for _ in range(batches):
        batch = next(loader)
    rate = batches * config.train.batch_size / (time.perf_counter() - started)
    row |= {"images_per_second": rounded(rate, 4), "per_worker": rounded(rate / workers)}
    return batch


def _whole_run(context: Context, workers: int) -> None:
    width, height, files, updates = context.size((500, 375, 512, 60), (100, 75, 8, 4))
    folder = photographs(context, f"photographs-{width}", files, width, height)
    keys = [f"data.train.path={folder}", f"data.num_workers={workers}", f"train.output_dir={context.work / 'whole'}"]
    keys += ["train.epochs=1", f"train.epoch_length={updates}", f"train.log_every={max(updates // 6, 1)}"]
    with context.case("whole run", case="S64", workers=workers) as row:
        config = case_config(context, "S64", *keys, "optim.warmup_epochs=0.1", "train.checkpoint_epochs=1")
        trainer = Trainer.from_config(config, prepare(config))
        started = time.perf_counter()
        trainer.run()
        row["run_s"] = rounded(time.perf_counter() - started)
        lines = [line for line in read_metrics(context.work / "whole") if "images_per_second" in line]
        row["images_per_second"] = rounded(lines[-1]["images_per_second"], 4)  # without the start of the workers
        row["loss"] = rounded(lines[-1]["loss"], 5)
        started = time.perf_counter()
        folder, step = context.work / "checkpoint", trainer.training_step
        save_checkpoint(folder, trainer.state, trainer.objective, step.optimizer, config, trainer.accelerator)
        row["checkpoint_s"] = rounded(time.perf_counter() - started)


class _Files:
    """Encoded images, some of them several times."""

    fingerprint = None

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[bytes, str]:
        return self.paths[index].read_bytes(), str(self.paths[index])


class _Pictures(torch.utils.data.Dataset):
    """The same for the stock pipeline."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.open(self.paths[index]).convert("RGB")


def features(context: Context) -> None:
    """Images per second from files to CLS, ours and the stock pipeline on the same weights."""
    folder = photographs(context, "photographs-500", 512, 500, 375) if not context.tiny else None
    folder = folder or photographs(context, "photographs-100", 8, 100, 75)
    paths, workers = sorted(folder.iterdir()), context.size(min(max(num_cores() - 2, 0), 14), 0)
    accelerator, batch = Accelerator(cpu=not on_cuda()), context.size(_BATCH, 4)
    cases = (("small", "bf16", 8), ("small", "fp32", 4), ("large", "bf16", 4), ("giant", "bf16", 2))
    for preset, precision, copies in context.size(cases, (("tiny", "fp32", 1),)):
        reset_memory()
        export = context.work / f"export-{preset}"
        transform = EvalTransform(*context.size((256, 224), (32, 28)), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        if not export.is_dir():
            with torch.device(device()):
                model = Dinov2Model(Dinov2Config.preset(preset))
            write_folder(export, model, preprocessor_config(transform))
            del model
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with context.case("extraction", model=preset, precision=precision, workers=workers) as row:
            ours, images = open_backbone(str(export), device(), dtype), _Files(paths * copies)
            pixels = torch.randn(batch, 3, transform.crop_size, transform.crop_size, device=device())
            forward = timed(lambda: ours.features(pixels, 1), context.size(5, 1), 2)["ms"]  # noqa: B023
            row["forward_images_per_second"] = rounded(1e3 * batch / forward, 4)
            started = time.perf_counter()
            found = gather_features(ours, images, transform, accelerator, batch_size=batch, num_workers=workers)
            synchronize()
            row["images_per_second"] = rounded(len(images) / (time.perf_counter() - started), 4)
            if preset != "giant":
                row |= _stock(export, dtype, paths, batch, workers, found.parts["cls"][:, 0])


def _stock(export: Path, dtype: torch.dtype, paths: list[Path], batch: int, workers: int, ours: torch.Tensor) -> dict:
    stock = pipeline("image-feature-extraction", model=str(export), dtype=dtype, device=device())
    started = time.perf_counter()
    cls = [torch.tensor(output)[0, 0] for output in stock(_Pictures(paths), batch_size=batch, num_workers=workers)]
    rate = len(paths) / (time.perf_counter() - started)
    cls, ours = torch.stack(cls).float(), ours[: len(cls)].float().cpu()
    difference = ((cls - ours).norm() / cls.norm()).item()
    limit = 1e-3 if dtype == torch.float32 else 0.05
    return {"stock": rounded(rate, 4), "difference": rounded(difference), "passed": difference < limit}
