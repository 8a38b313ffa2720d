"""Videos of objects that move, with their masks."""

import io

import numpy as np
from datasets import Dataset, Features, Image, List
from PIL import Image as Pillow
from PIL import ImageDraw

from .composed import CLOTHING


def encoded(pixels):
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def moving_videos():
    """Three videos of a disk and a triangle cut from photographs that move over another, with their masks."""
    rows = Dataset.from_parquet(str(CLOTHING / "test.parquet")).select(range(12)).cast_column("image", Image())
    photographs = [np.array(image.convert("RGB").resize((128, 96))) for image in rows["image"]]
    videos = []
    for number in range(3):
        background, *textures = photographs[3 * number : 3 * number + 3]
        frames, masks = [], []
        for time in range(7 + number):
            frame, mask = background.copy(), np.zeros((96, 128), dtype=np.uint8)
            for index, ((y, x), (down, right)) in enumerate([((28, 24), (3, 8)), ((70, 100), (-3, -7))]):
                y, x = y + time * down, x + time * right
                shape = Pillow.new("L", (128, 96))
                if index == 0:
                    ImageDraw.Draw(shape).ellipse((x - 18, y - 18, x + 18, y + 18), fill=1)
                else:
                    ImageDraw.Draw(shape).polygon([(x, y - 18), (x + 18, y + 18), (x - 18, y + 18)], fill=1)
                rows, columns = np.nonzero(np.array(shape))
                frame[rows, columns] = textures[index][rows - y + 40, columns - x + 60]
                mask[rows, columns] = index + 1
            frames.append(frame)
            masks.append(mask)
        videos.append((frames, masks))
    return videos


def as_dataset(videos):
    """A set with a video in each row."""
    columns = {
        "frames": [[encoded(frame) for frame in frames] for frames, _ in videos],
        "masks": [[None if mask is None else encoded(mask) for mask in masks] for _, masks in videos],
    }
    return Dataset.from_dict(columns, features=Features(frames=List(Image()), masks=List(Image())))
