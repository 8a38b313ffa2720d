"""A page with pictures of what every stage found, because thresholds are chosen by looking (appendix A)."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..files import beside
from .balance import BalanceStage
from .card import describe
from .dedup import DedupStage, index_path
from .embed import replacements
from .filter import FilterStage
from .hash_stage import HashesStage
from .retrieve import RetrieveStage
from .stage import Context, Stage
from .tables import image_ids, positions_of, read_table, shards_of
from .thumbnails import Tile, draw_histogram, draw_sheet
from .vectors import load_index, search

_COLUMNS, _MOST_MEASURED = 8, 2000
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Curation</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ddd; }} p {{ max-width: 46rem; }}
table {{ border-collapse: collapse; }} td {{ padding: .15rem 1.2rem .15rem 0; vertical-align: top; }}
img {{ max-width: 100%; display: block; margin: .6rem 0; }} .kept {{ color: #2a9d5c; }} .dropped {{ color: #c0392b; }}
.query {{ color: #2563a8; }}
</style></head><body>
<h1>Curation</h1>
{body}
</body></html>
"""

Section = tuple[str, str, list[str]]
"""Title, what is to be seen (HTML), names of pictures."""


class ReportStage(Stage):
    """Writes `report/index.html` and its pictures."""

    def __init__(self, context: Context, stages: Sequence[Stage]) -> None:
        super().__init__("report", context, stages)

    @property
    def outside(self) -> list[Path]:
        return [self.page.parent]

    @property
    def page(self) -> Path:
        return self.context.output / "report" / "index.html"

    @property
    def settings(self) -> dict:
        return vars(self.context.config.report) | {"seed": self.context.config.seed}

    def steps(self) -> dict[str, int]:
        return {"draw": 1}

    def summary(self) -> dict:
        return {"pictures": len(list(self.page.parent.glob("*.png")))}

    def do(self, step: str, unit: int) -> None:
        draw: dict[type, Callable[..., Iterator[Section]]] = {
            HashesStage: self._hashes,
            DedupStage: self._dedup,
            RetrieveStage: self._retrieve,
            BalanceStage: self._balance,
        }
        rows = [(stage.name, describe(stage.counts or {})) for stage in self.after]
        cells = "".join(f"<tr><td>{name}</td><td>{html.escape(counts)}</td></tr>" for name, counts in rows)
        body = [f"<table>{cells}</table>"]
        for stage in self.after:
            for title, text, pictures in draw[type(stage)](stage) if type(stage) in draw else ():
                images = "".join(f'<img src="{name}" alt="{html.escape(title)}" loading="lazy">' for name in pictures)
                body.append(f"<h2>{html.escape(title)}</h2><p>{text}</p>{images}")
        with beside(self.page) as temporary:
            temporary.write_text(_PAGE.format(body="\n".join(body)))

    def _hashes(self, stage: HashesStage) -> Iterator[Section]:
        distance = self.context.config.hashes.max_distance
        rule = "of equal bytes" if distance < 0 else f"whose hashes differ in {distance} bits or fewer"
        yield from self._groups(stage, "Duplicates by hashes", f"Images {rule}.")

    def _dedup(self, stage: DedupStage) -> Iterator[Section]:
        config = self.context.config.dedup
        text = f"Images that neighbours above a cosine of {config.threshold:g} connect."
        yield from self._groups(stage, "Duplicates by features", text)
        vectors = stage.vectors()
        if len(vectors) < 2:
            return
        rng = np.random.default_rng(self.context.config.seed)
        rows = np.sort(rng.choice(len(vectors), min(_MOST_MEASURED, len(vectors)), replace=False))
        ids = vectors.all_ids()
        shards = np.searchsorted([vectors.first_row(n) for n in range(stage.num_shards())], rows, side="right") - 1
        queries = np.concatenate(
            [vectors.shard(n)[rows[shards == n] - vectors.first_row(n)] for n in np.unique(shards)]
        )
        similarities, found = search(load_index(index_path(stage)), queries, 2, self.context.config.search.num_probes)
        own = found == rows[:, None]
        # an image is not its own neighbour; where copies are equal it may not even be among the two
        second = np.where(own[:, 0], 1, 0)
        near, value = (table[np.arange(len(rows)), second] for table in (found, similarities))
        known = near >= 0
        rows, near, value = rows[known], near[known], value[known]
        draw_histogram(
            self.page.parent / "similarities.png",
            {"nearest neighbour": value},
            {"dedup.threshold": config.threshold}
            | ({"dedup.relative_threshold": config.relative_threshold} if self.context.config.evaluations else {}),
            "cosine to the nearest other image of the pool",
        )
        yield (
            "Similarities",
            f"Of {len(rows):,} images drawn at random. Duplicates are a hill at the right; the threshold belongs into "
            "the valley before it.",
            ["similarities.png"],
        )
        pictures = []
        for name, side in (("above", value > config.threshold), ("below", value <= config.threshold)):
            order = np.flatnonzero(side)[np.argsort(np.abs(value[side] - config.threshold), kind="stable")]
            pairs: dict[tuple[int, int], float] = {}
            for i in order:
                if len(pairs) < self.context.config.report.samples:
                    pairs[min(rows[i], near[i]), max(rows[i], near[i])] = value[i]
            if pairs:
                images = self._of_pool(ids[np.array(list(pairs)).ravel()])
                tiles = [Tile(images[int(ids[row])], f"{own:.3f}") for pair, own in pairs.items() for row in pair]
                sheet = [("", tiles[start : start + _COLUMNS]) for start in range(0, len(tiles), _COLUMNS)]
                sheet[0] = (f"just {name}\nthe threshold", sheet[0][1])
                draw_sheet(self.page.parent / f"{name}.png", sheet, _COLUMNS)
                pictures.append(f"{name}.png")
        yield "Pairs around the threshold", "Two and two; the cosine of the pair is under both.", pictures

    def _retrieve(self, stage: RetrieveStage) -> Iterator[Section]:
        ids = stage.vectors().all_ids()
        rng = np.random.default_rng(self.context.config.seed)
        for name in stage.named("nearest"):
            units = range(stage.seeds[name].steps()["embed"])
            tables = [read_table(stage.found(name, unit)) for unit in units]
            queries = np.concatenate([table["query"] for table in tables])
            rows = [row for table in tables for row in table["row"].to_pylist()]
            values = [value for table in tables for value in table["similarity"].to_pylist()]
            count = min(self.context.config.report.samples, len(queries))
            drawn = np.sort(rng.choice(len(queries), count, replace=False))
            seeds = self._read(f"seeds.{name}", queries[drawn])
            found = self._of_pool(np.array([ids[row] for i in drawn for row in rows[i][: _COLUMNS - 1] if row >= 0]))
            sheet = []
            for i in drawn:
                tiles = [Tile(seeds[int(queries[i])], "query", "query")]
                near = zip(rows[i][: _COLUMNS - 1], values[i])
                tiles += [Tile(found[int(ids[row])], f"{value:.3f}") for row, value in near if row >= 0]
                sheet.append(("", tiles))
            draw_sheet(self.page.parent / f"nearest-{name}.png", sheet, _COLUMNS)
            by_rank = np.array(values, dtype=np.float64)
            series = {"the nearest": by_rank[:, 0]}
            if by_rank.shape[1] > 1:
                series[f"neighbour {by_rank.shape[1]}"] = by_rank[:, -1]
            series = {label: own[np.isfinite(own)] for label, own in series.items()}
            draw_histogram(self.page.parent / f"similarities-{name}.png", series, {}, "cosine to the query", "queries")
            yield (
                f"Retrieved for {name}",
                f'<span class="query">Queries</span> and the {by_rank.shape[1]} nearest images of the pool, with their '
                "cosines. Where the last ones of a row are of something else, seeds.*.num_neighbours is too high.",
                [f"nearest-{name}.png", f"similarities-{name}.png"],
            )
        if stage.named("clusters"):
            units = range(len(self.context.pool))
            clusters = np.concatenate([read_table(stage.assigned(None, unit))["cluster"] for unit in units])
            for name in stage.named("clusters"):
                own = range(stage.seeds[name].steps()["embed"])
                assigned = [read_table(stage.assigned(name, unit))["cluster"] for unit in own]
                counts = np.bincount(np.concatenate(assigned))
                labels = {int(c): f"{int(counts[c])} queries" for c in np.argsort(-counts, kind="stable") if counts[c]}
                text = (
                    "Images of the clusters that most queries fall in; those of more than "
                    f"{self.context.config.retrieve.min_queries} are taken from."
                )
                yield from self._clusters(f"clusters-{name}", f"Clusters for {name}", text, ids, clusters, labels)

    def _balance(self, stage: BalanceStage) -> Iterator[Section]:
        tables = [read_table(stage.clustered(unit)) for unit in range(len(self.context.pool))]
        ids, clusters = (np.concatenate([table[name] for table in tables]) for name in ("id", "cluster"))
        parts = [read_table(stage.part(unit))["cluster"] for unit in range(len(self.context.pool))]
        sizes = np.bincount(clusters)
        taken = np.bincount(np.concatenate(parts), minlength=len(sizes))
        order = np.argsort(-sizes, kind="stable")
        order = order[sizes[order] > 0]
        chosen = np.unique(np.linspace(0, len(order) - 1, self.context.config.report.samples).astype(int))
        labels = {int(c): f"{taken[c]:,} taken\nof {sizes[c]:,}" for c in order[chosen]}
        text = "Clusters of the finest level, from the largest to the smallest."
        yield from self._clusters("clusters", "Clusters", text, ids, clusters, labels)

    def _clusters(self, name, title, text, ids, clusters, labels: dict[int, str]) -> Iterator[Section]:
        rng = np.random.default_rng(self.context.config.seed)
        sheet, wanted = [], {}
        for cluster in list(labels)[: self.context.config.report.samples]:
            members = np.flatnonzero(clusters == cluster)
            if len(members):
                wanted[cluster] = ids[rng.choice(members, min(_COLUMNS, len(members)), replace=False)]
        if not wanted:
            return
        images = self._of_pool(np.concatenate(list(wanted.values())))
        sheet = [(labels[cluster], [Tile(images[int(i)]) for i in own]) for cluster, own in wanted.items()]
        draw_sheet(self.page.parent / f"{name}.png", sheet, _COLUMNS)
        yield title, text, [f"{name}.png"]

    def _groups(self, stage: Stage, title: str, text: str) -> Iterator[Section]:
        table = read_table(stage.folder / "groups.parquet")
        labels, ids, kept = (table[name].to_numpy() for name in ("group", "id", "kept"))
        if not len(labels):
            yield title, f"{text} There are none.", []
            return
        names, counts = np.unique(labels, return_counts=True)
        samples = self.context.config.report.samples
        # the largest group, where something went wrong is seen at once, and others at random
        largest = names[np.argmax(counts)]
        others = np.random.default_rng(self.context.config.seed).permutation(names[names != largest])[: samples - 1]
        members = {group: np.flatnonzero(labels == group) for group in (largest, *np.sort(others))}
        members = {group: own[np.argsort(~kept[own], kind="stable")] for group, own in members.items()}
        images = self._of_pool(np.concatenate([ids[own[:_COLUMNS]] for own in members.values()]))
        sheet = []
        for own in members.values():
            tiles = [Tile(images[int(ids[i])], "", "kept" if kept[i] else "dropped") for i in own[:_COLUMNS]]
            sheet.append((f"{len(own):,} images", tiles))
        draw_sheet(self.page.parent / f"{stage.name}.png", sheet, _COLUMNS)
        frames = '<span class="kept">Green: kept</span>, <span class="dropped">red: dropped</span>.'
        yield title, f"{text} The largest group first, others at random. {frames}", [f"{stage.name}.png"]

    def _of_pool(self, ids: np.ndarray) -> dict[int, bytes]:
        return self._read("pool", ids)

    def _read(self, collection: str, ids: np.ndarray) -> dict[int, bytes]:
        """The images of a collection, by id."""
        ids, found = np.unique(ids), {}
        filtered = next(stage for stage in self.after if isinstance(stage, FilterStage))
        for number in np.unique(shards_of(ids)).tolist():
            positions = positions_of(ids[shards_of(ids) == number])
            changed = replacements(filtered, number) if collection == "pool" else {}
            for position, data, _ in self.context.collections[collection].shards[number].read(positions):
                found[int(image_ids(number, np.array(position)))] = changed.get(position, data)
        return found
