"""First stage: images that can be decoded and are large enough, their sizes and their hashes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ..config.curation import FilterConfig
from ..data import Broken, write_broken
from ..data.decode import BrokenImage, open_image
from .hashes import bytes_hash, perceptual_hash
from .hooks import Hook, apply_hooks, load_hook
from .stage import Context, Stage
from .tables import image_ids, num_rows, read_column, read_table, write_table

_HASHED_SIDE = 128
"""Pixels of the short side that are enough for hashes and blankness."""
_KEPT = pa.schema(
    {
        "id": pa.int64(),
        "source": pa.string(),
        "name": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "bytes_hash": pa.uint64(),
        "perceptual_hash": pa.uint64(),
        "replacement": pa.binary(),
    }
)
_DROPPED = pa.schema({"id": pa.int64(), "name": pa.string(), "reason": pa.string(), "detail": pa.string()})
_SHARD = "broken shard"
"""Reason of a row that is not of an image, but of a file of a stream that cannot be read to its end."""


class Dropped(Exception):
    """An image that is left out: a reason that is counted, and what the decoder says of one that is broken."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.detail = detail


class FilterStage(Stage):
    """Reads the pool; leaves the images that pass, with what later stages want to know, and lists the others."""

    def __init__(self, context: Context) -> None:
        super().__init__("filter", context)

    @property
    def settings(self) -> dict:
        config = self.context.config.filter
        return {"pool": self.context.collections["pool"].fingerprint, "filter": vars(config)}

    def steps(self) -> dict[str, int]:
        return {"filter": len(self.context.pool)}

    def do(self, step: str, unit: int) -> None:
        config, shard = self.context.config.filter, self.context.pool[unit]
        hooks = [load_hook(name) for name in config.hooks]
        kept, dropped = [], []
        for position, data, name in shard.read():
            number = int(image_ids(unit, np.array(position)))
            try:
                kept.append({"id": number, "source": shard.source, "name": name} | examine(data, config, hooks))
            except Dropped as reason:
                dropped.append({"id": number, "name": name, "reason": str(reason), "detail": reason.detail})
        if shard.broken:
            dropped.append({"name": shard.broken.name, "reason": _SHARD, "detail": shard.broken.reason})
        write_table(self.dropped(unit), pa.Table.from_pylist(dropped, schema=_DROPPED))
        write_table(self.part(unit), pa.Table.from_pylist(kept, schema=_KEPT))

    def dropped(self, unit: int):
        return self.folder / "dropped" / f"{unit:05d}.parquet"

    def _broken(self, unit: int) -> Iterator[Broken]:
        kinds = {"broken": "image", _SHARD: "shard"}
        for row in read_table(self.dropped(unit)).filter(pc.field("reason").isin(list(kinds))).to_pylist():
            yield Broken(kinds[row["reason"]], row["name"], row.get("detail") or "")

    def summary(self) -> dict:
        shards = range(len(self.context.pool))
        reasons: Counter[str] = Counter()
        for unit in shards:
            reasons.update(read_column(self.dropped(unit), "reason").tolist())
        broken = {"broken_shards": reasons.pop(_SHARD)} if _SHARD in reasons else {}
        kept = sum(num_rows(self.part(unit)) for unit in shards)
        write_broken(self.context.output, [item for unit in shards for item in self._broken(unit)])
        told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        if not kept:
            raise ValueError(
                f"the pool has no image that passes the filter{f': {told}' if told else ', and no rows'}; "
                "see pool.*.path and filter.*"
            )
        return {
            "images": kept + sum(reasons.values()),
            "kept": kept,
            "dropped": dict(sorted(reasons.items())),
            **broken,
        }


def examine(data: bytes, config: FilterConfig, hooks: Sequence[Hook] = ()) -> dict:
    """Size and hashes of an image, and its bytes after the hooks where they changed it.

    Raises:
        Dropped: why it does not pass: broken, small, elongated, blank, or the name of a hook.
    """
    try:
        image = open_image(data)
        width, height = image.width, image.height
        if min(width, height) < config.min_side:
            raise Dropped("small")
        if max(width, height) > config.max_aspect * min(width, height):
            raise Dropped("elongated")
        pixels, _ = image.decode(1.0 if hooks else max(min(width, height) / _HASHED_SIDE, 1.0))
    except BrokenImage as error:
        raise Dropped("broken", str(error)) from None
    if not pixels.dtype.is_floating_point:
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    else:  # of arrays of more than 8 bits
        picture = Image.fromarray((pixels.permute(1, 2, 0).contiguous().numpy() * 255).round().astype(np.uint8))
    grey = np.asarray(picture.convert("L"))
    if grey.std() < config.min_deviation:
        raise Dropped("blank")
    changed, dropped_by = apply_hooks(config.hooks, hooks, picture)
    if dropped_by:
        raise Dropped(f"hook {dropped_by}")
    replacement = None
    if changed is not picture:
        changed = changed.convert("RGB")
        (width, height), grey = changed.size, np.asarray(changed.convert("L"))
        file = io.BytesIO()
        changed.save(file, "PNG" if data.startswith(b"\x89PNG") else "JPEG", **{"quality": 95, "subsampling": 0})
        replacement = file.getvalue()
    return {
        "width": width,
        "height": height,
        "bytes_hash": bytes_hash(data),
        "perceptual_hash": perceptual_hash(grey),
        "replacement": replacement,
    }
