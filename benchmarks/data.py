"""Images per second and core that the data path makes of JPEG bytes, against the plain path, in one run.

    python benchmarks/data.py
    python benchmarks/data.py --sizes 375 --quality 75 --rounds 20
    python benchmarks/data.py --listing 100000   # the start of a run on so many files, see listing.py

Both make 2 crops of 224 and 8 of 98 pixels with the published augmentation, on one core. The plain path is what the
published code does with torchvision, operation by operation: Pillow decodes the whole file, cuts, resizes, jitters
colours; a 9 x 9 convolution blurs; then a normalised tensor. Ours is what a data worker does (bytes to a batch of uint8
crops, colour parameters and masks; no colours are changed); "with colours" adds what the training process does on its
device, here on the same core. Where torchvision can be imported, its v2 transforms run too, like for like: geometry
only (bytes to uint8 crops) against the worker, and with colours (bytes to normalised floats) against ours with colours.
Sources are mosaics of the bundled photographs, by their short side, 4:3. Each round times every path on the same
images; ratios are medians over the rounds. Prints tables in Markdown.
"""

import argparse
import io
import math
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Image as ImageColumn
from datasets import load_dataset
from listing import measure_listing
from PIL import Image, ImageEnhance, ImageOps

from dinov2_hf.config import DINOv2RunConfig
from dinov2_hf.data import PhotometricAugmentation, TrainingBatches
from dinov2_hf.data.crops import MultiCrop, as_crop, draw_box, resample
from dinov2_hf.data.decode import open_image
from dinov2_hf.data.photometric import draw_view_parameters
from dinov2_hf.data.sources.training import Sample
from dinov2_hf.train.accelerator import keep_freed_memory

PHOTOGRAPHS = Path(__file__).parent.parent / "examples/data/clothing/train.parquet"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = [(224, (0.32, 1.0), 0.0, 0.0), (224, (0.32, 1.0), 0.9, 0.2)] + [(98, (0.05, 0.32), 0.5, 0.0)] * 8
"""Size, share of the area, probability of blur and of solarisation."""


def make_images(short_side: int, count: int, quality: int) -> list[bytes]:
    """JPEG files of mosaics of photographs."""
    photographs = load_dataset("parquet", data_files={"train": str(PHOTOGRAPHS)}, split="train")
    photographs = photographs.select(range(300)).cast_column("image", ImageColumn(decode=False))
    tiles = [
        np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").resize((225, 300)))
        for row in photographs
    ]
    rng = np.random.default_rng(0)
    height, width = short_side, short_side * 4 // 3
    files = []
    for _ in range(count):
        rows = [
            np.concatenate([tiles[rng.integers(len(tiles))] for _ in range(width // 225 + 2)], axis=1)
            for _ in range(height // 300 + 2)
        ]
        mosaic = np.concatenate(rows)
        top, left = rng.integers(0, mosaic.shape[0] - height + 1), rng.integers(0, mosaic.shape[1] - width + 1)
        buffer = io.BytesIO()
        Image.fromarray(mosaic[top : top + height, left : left + width]).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files


# ---- the plain path


def plain_crop(image: Image.Image, size: int, scale: tuple[float, float]) -> Image.Image:
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)


def plain_hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def plain_blur(image: Image.Image, sigma: float) -> Image.Image:
    taps = torch.exp(-0.5 * (torch.linspace(-4, 4, 9) / sigma) ** 2)
    taps /= taps.sum()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float()
    pixels = torch.nn.functional.pad(pixels, [4] * 4, mode="reflect")
    pixels = torch.nn.functional.conv2d(pixels, torch.outer(taps, taps).expand(3, 1, 9, 9), groups=3)[0]
    return Image.fromarray(pixels.round().to(torch.uint8).permute(1, 2, 0).numpy())


def plain_colors(image: Image.Image, blur: float, solarize: float) -> torch.Tensor:
    if random.random() < 0.8:
        for operation in np.random.permutation(4):
            if operation == 0:
                image = ImageEnhance.Brightness(image).enhance(random.uniform(0.6, 1.4))
            elif operation == 1:
                image = ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.4))
            elif operation == 2:
                image = ImageEnhance.Color(image).enhance(random.uniform(0.8, 1.2))
            else:
                image = plain_hue(image, random.uniform(-0.1, 0.1))
    if random.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if random.random() < blur:
        image = plain_blur(image, random.uniform(0.1, 2.0))
    if random.random() < solarize:
        image = ImageOps.solarize(image, 128)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return (tensor - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def plain_path(files: list[bytes]) -> None:
    for data in files:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for size, scale, blur, solarize in VIEWS:
            crop = plain_crop(image, size, scale)
            plain_colors(ImageOps.mirror(crop) if random.random() < 0.5 else crop, blur, solarize)


def torchvision_paths():
    """The same with torchvision's v2 transforms: geometry only, and with colours; none where it cannot be imported.

    Each in both ways that its documentation shows: Pillow images until the end, and tensors from its own JPEG decoder.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
        from torchvision.transforms import v2
    except (ImportError, RuntimeError, OSError):
        return {}

    def from_pillow(data: bytes):
        return Image.open(io.BytesIO(data)).convert("RGB")

    def from_torchvision(data: bytes):
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)

    def geometry(size, scale):
        bicubic = v2.InterpolationMode.BICUBIC
        return [
            v2.RandomResizedCrop(size, scale=scale, interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(),
        ]

    def colors(blur, solarize):
        return [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, sigma=(0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarize),
        ]

    normalized = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]

    def path(decode, whole: bool):
        views = [
            v2.Compose(
                [
                    *geometry(size, scale),
                    *(colors(blur, solarize) if whole else []),
                    v2.ToImage(),
                    *(normalized if whole else []),
                ]
            )
            for size, scale, blur, solarize in VIEWS
        ]

        def run(files: list[bytes]) -> None:
            for data in files:
                image = decode(data)
                for view in views:
                    view(image)

        return run

    ways = {"Pillow": from_pillow, "tensors": from_torchvision}
    return {(name, whole): path(decode, whole) for name, decode in ways.items() for whole in (False, True)}


# ---- ours


class Files:
    """A training source in memory."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def read(self, number: int) -> Sample:
        epoch, index = divmod(number, len(self.files))
        return Sample(self.files[index], f"file {index}", epoch, index)


def our_paths(files: list[bytes]):
    config = DINOv2RunConfig()
    config.train.batch_size = len(files)
    batches = TrainingBatches(Files(files), config, 0, 1_000_000)
    augment = PhotometricAugmentation(config.colors)
    numbers = iter(range(1_000_000))

    def worker() -> None:
        batches.batch(next(numbers))

    def with_colors() -> None:
        augment(batches.batch(next(numbers)))

    return worker, with_colors


def stage_times(files: list[bytes], rounds: int) -> dict[str, float]:
    """Milliseconds an image of each stage of ours."""
    config = DINOv2RunConfig()
    batches = TrainingBatches(Files(files), config, 0, 1)
    config.train.batch_size = len(files)
    batch = batches.batch(0)
    augment = PhotometricAugmentation(config.colors)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}

    def timed(name: str, function):
        start = time.perf_counter()
        result = function()
        times.setdefault(name, []).append((time.perf_counter() - start) * 1000 / len(files))
        return result

    def boxes_of(image) -> list:
        return [draw_box(rng, image.width, image.height, scale) for _, scale, _, _ in VIEWS]

    def reduction(boxes: list) -> float:
        return min(min(r - left, b - top) / size for (left, top, r, b), (size, *_) in zip(boxes, VIEWS))

    def cut(pixels, scale, boxes) -> None:
        for box, (size, *_) in zip(boxes, VIEWS):
            as_crop(resample(pixels, tuple(side * scale for side in box), (size, size))).numpy()

    crops = MultiCrop(config.crops)(files[0], rng)
    target = [np.empty_like(crop) for crop in crops]

    def run_once() -> None:
        images = timed("open", lambda: [open_image(data) for data in files])
        boxes = timed("draw boxes", lambda: [boxes_of(image) for image in images])
        decoded = timed("decode", lambda: [image.decode(reduction(b)) for image, b in zip(images, boxes)])
        timed("cut and resample", lambda: [cut(*d, b) for d, b in zip(decoded, boxes)])
        timed("copy into the batch", lambda: [np.copyto(t, c) for _ in files for t, c in zip(target, crops)])
        timed("draw colours", lambda: [draw_view_parameters(rng, config.colors, 8) for _ in files])
        timed("colours and normalisation", lambda: augment(batch))

    for _ in range(rounds):
        run_once()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 375, 1500], help="short sides of the sources")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEG files (default: 85)")
    parser.add_argument("--images", type=int, default=16, help="images a round (default: 16)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that are timed (default: 10)")
    parser.add_argument("--listing", type=int, metavar="FILES", help="measure the listing of so many files instead")
    args = parser.parse_args()
    if args.listing:
        measure_listing(args.listing)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
    torch.set_num_threads(1)
    keep_freed_memory()
    others = torchvision_paths()

    def row(size: int, times: dict, base, names) -> str:
        """Images per second of each, and the median of the ratios to `base`; no ratio of `base` itself."""

        def shown(name) -> str:
            ratio = statistics.median(slow / mine for slow, mine in zip(times[base], times[name]))
            return f"{1 / statistics.median(times[name]):.0f}" + (f" ({ratio:.1f})" if name != base else "")

        return f"| {size} | {' | '.join(shown(name) for name in names)} |"

    stages, measured, bits = {}, {}, {}
    for size in args.sizes:
        files = make_images(size, args.images, args.quality)
        worker, with_colors = our_paths(files)
        paths = {"plain": lambda files=files: plain_path(files), "worker": worker, "colors": with_colors}
        paths |= {name: (lambda run=run, files=files: run(files)) for name, run in others.items()}
        times = measured[size] = {name: [] for name in paths}
        for index in range(args.rounds + 1):
            for name, path in paths.items():
                start = time.perf_counter()
                path()
                if index:
                    times[name].append((time.perf_counter() - start) / len(files))
        bits[size] = statistics.mean(len(data) for data in files) * 8 / (size * (size * 4 // 3))
        stages[size] = stage_times(files, args.rounds)

    print("images/s on one core (ratio to plain)\n")
    print("| short side | plain | ours, worker, without colours | ours, with colours |")
    print("| ---: | ---: | ---: | ---: |")
    for size, times in measured.items():
        print(row(size, times, "plain", ("plain", "worker", "colors")))
    print(f"\nbits a pixel: {', '.join(f'{size}: {value:.2f}' for size, value in bits.items())}")
    for whole, ours in ((False, "worker"), (True, "colors")) if others else ():
        print(
            f"\n{'with colours' if whole else 'geometry only'}, images/s on one core (ratio to torchvision, Pillow)\n"
        )
        print(
            "| short side | torchvision v2, Pillow | torchvision v2, tensors | ours | ours / the faster torchvision |"
        )
        print("| ---: | ---: | ---: | ---: | ---: |")
        for size, times in measured.items():
            names = [("Pillow", whole), ("tensors", whole)]
            faster = min(names, key=lambda name: statistics.median(times[name]))
            ratio = statistics.median(theirs / mine for theirs, mine in zip(times[faster], times[ours]))
            print(f"{row(size, times, names[0], (*names, ours))} {ratio:.1f} |")

    print("\nmilliseconds an image of each stage\n")
    print("| stage | " + " | ".join(f"{size}" for size in stages) + " |")
    print("| --- |" + " ---: |" * len(stages))
    for name in next(iter(stages.values())):
        print(f"| {name} | " + " | ".join(f"{times[name]:.2f}" for times in stages.values()) + " |")


if __name__ == "__main__":
    main()
