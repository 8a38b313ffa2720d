"""Makes `examples/data/clothing` from the full-size clothing photographs (CC0): short side 128, JPEG.

    python examples/data/build_clothing.py /path/to/full-size --out examples/data/clothing

The input folder holds `train.parquet`, `validation.parquet`, `test.parquet` (columns `image`, `label`) and `LICENSE`.
"""

import argparse
import io
import shutil
from pathlib import Path

from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from tqdm import tqdm


def shrink(data: bytes, short_side: int, quality: int) -> bytes:
    image = PILImage.open(io.BytesIO(data)).convert("RGB")
    scale = short_side / min(image.size)
    if scale < 1:
        image = image.resize([round(side * scale) for side in image.size], PILImage.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the full-size parquet files and LICENSE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "clothing")
    parser.add_argument("--short-side", type=int, default=128, help="pixels")
    parser.add_argument("--quality", type=int, default=50, help="JPEG quality")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = Dataset.from_parquet(str(args.source / f"{split}.parquet")).cast_column("image", Image(decode=False))
        images = [
            {"bytes": shrink(row["image"]["bytes"], args.short_side, args.quality), "path": row["image"]["path"]}
            for row in tqdm(rows, desc=split)
        ]
        features = Features({"image": Image(), "label": rows.features["label"]})
        small = Dataset.from_dict({"image": images, "label": rows["label"]}, features=features)
        small.to_parquet(str(args.out / f"{split}.parquet"))
    shutil.copy(args.source / "LICENSE", args.out / "LICENSE")
    total = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
