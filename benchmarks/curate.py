"""Time and peak memory of the vector work of curation on made embeddings, a stage at a time.

    python benchmarks/curate.py
    python benchmarks/curate.py --rows 50000 --folder /tmp/curate --workers 1

Makes `--rows` unit vectors (float16, in memory-mapped shards under `--folder`): concepts of very unequal sizes in
groups of twenty, a tenth of the rows near-copies of others, and an evaluation set of which half have copies in the
pool. Then self-dedup (64 neighbours, cosine > 0.6), relative dedup (> 0.45), retrieval by neighbours and by clusters,
hierarchical k-means with resampling and a balanced sample. Every stage runs in processes of its own, so that the peak
is that stage's (of all its workers together; mapped pages of the shards and the index count, in each worker). The
smallest run, `--rows 4000 --workers 1`, only shows that the script runs.
Prints a table in Markdown, with the seconds that all cores worked: those hold on a busy machine too.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dinov2_hf.curation.vectors import (
    VectorShards,
    assign,
    balanced_sample,
    build_index,
    components,
    hierarchical_kmeans,
    kmeans,
    load_index,
    neighbour_pairs,
    relative_dedup,
    retrieve_clusters,
    retrieve_nearest,
    save_index,
    search,
    self_dedup,
)

SHARD = 100_000
TASK = 125_000
"""Rows that one task searches."""
CHUNK = 50_000


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make(folder: Path, count: int, dim: int) -> dict:
    """Rows of one concept have a cosine of 0.25 and of one group 0.1; copies 0.65 to 0.99 with their original."""
    rng = np.random.default_rng(0)
    num_concepts = max(20, count // 500)
    groups = unit(rng.standard_normal((num_concepts // 20, dim), dtype=np.float32))
    concepts = unit(rng.standard_normal((num_concepts, dim), dtype=np.float32))
    concepts = unit(np.sqrt(0.4) * groups[np.arange(num_concepts) % len(groups)] + np.sqrt(0.6) * concepts)
    share = 1 / np.arange(1, num_concepts + 1) ** 0.7

    def noise(centres: np.ndarray, cosine: np.ndarray | float) -> np.ndarray:
        cosine = np.broadcast_to(np.asarray(cosine, dtype=np.float32), len(centres))[:, None]
        random = unit(rng.standard_normal(centres.shape, dtype=np.float32))
        return unit(cosine * centres + np.sqrt(1 - cosine**2) * random)

    originals = count - count // 10
    concept = rng.choice(num_concepts, originals, p=share / share.sum())
    # the copies: often one of a row, sometimes up to hundreds
    copy_of = rng.choice(originals, count - originals, p=(popular := rng.pareto(1.5, originals) + 0.1) / popular.sum())
    shard_of = np.array_split(np.arange(count), -(-count // SHARD))
    pool = np.lib.format.open_memmap(folder / "pool.tmp.npy", "w+", np.float16, (count, dim))
    for start in range(0, originals, CHUNK):
        part = slice(start, min(start + CHUNK, originals))
        pool[part] = noise(concepts[concept[part]], 0.5).astype(np.float16)
    for start in range(0, count - originals, CHUNK):
        part = copy_of[start : start + CHUNK]
        rows = noise(pool[part].astype(np.float32), rng.uniform(0.65, 0.99, len(part)))
        pool[originals + start : originals + start + len(part)] = rows.astype(np.float16)
    order = rng.permutation(count)
    for number, rows in enumerate(shard_of):
        np.save(folder / f"pool-{number:04}.npy", pool[order[rows]])
    os.remove(folder / "pool.tmp.npy")
    num_references = count // 100
    copied = rng.choice(originals, num_references // 2, replace=False)
    place = np.argsort(order)
    pool = open_pool(folder)
    references = np.concatenate(
        [
            noise(pool[place[copied]].astype(np.float32), 0.8),
            noise(concepts[rng.choice(num_concepts, num_references - len(copied))], 0.5),
        ]
    )
    np.save(folder / "references.npy", references.astype(np.float16))
    seeds = rng.choice(num_concepts, max(1, num_concepts // 50), replace=False)
    np.save(folder / "queries.npy", noise(concepts[np.repeat(seeds, 20)], 0.5).astype(np.float16))
    np.save(folder / "original.npy", np.concatenate([np.arange(originals), copy_of])[order])
    np.save(folder / "concept.npy", concept)
    np.save(folder / "copied.npy", copied)
    return {"made": f"{count:,} x {dim}, {num_concepts:,} concepts, {count - originals:,} copies"}


def open_pool(folder: Path) -> VectorShards:
    return VectorShards([np.load(path, mmap_mode="r") for path in sorted(folder.glob("pool-*.npy"))])


def shards_with_references(folder: Path) -> list[np.ndarray]:
    paths = [*sorted(folder.glob("pool-*.npy")), folder / "references.npy"]
    return [np.load(path, mmap_mode="r") for path in paths]


def index_pool(folder: Path, nprobe: int) -> dict:
    """One index over the pool and the references behind it serves both searches for duplicates."""
    shards = VectorShards(shards_with_references(folder))
    index = build_index(shards_with_references(folder), shards.shape[1], len(shards))
    save_index(index, folder / "all.faiss")
    size = (folder / "all.faiss").stat().st_size
    return {"lists": getattr(index, "nlist", 0), "bytes a row": round(size / len(shards))}


def find_pairs(folder: Path, nprobe: int) -> dict:
    """All pairs above 0.45, once for both stages: those above 0.6 are the ones of self-dedup."""
    count = len(VectorShards(shards_with_references(folder)))
    tasks = [(folder, nprobe, first) for first in range(0, count, TASK)]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    with multiprocessing.get_context("spawn").Pool(int(os.environ["WORKERS"])) as pool:
        total = sum(pool.starmap(find_pairs_of_task, tasks, chunksize=1))
    return {"pairs": total, "bytes": total * 20}


def find_pairs_of_task(folder: Path, nprobe: int, first: int) -> int:
    rows = VectorShards(shards_with_references(folder))[first : first + TASK]
    index = load_index(folder / "all.faiss")
    pairs, similarities = neighbour_pairs(index, rows, first, 64, 0.45, nprobe=nprobe)
    np.save(folder / f"pairs-{first:010}.npy", pairs)
    np.save(folder / f"cosines-{first:010}.npy", similarities)
    return len(pairs)


def pairs_above(folder: Path, threshold: float):
    for path in sorted(folder.glob("pairs-*.npy")):
        yield np.load(path)[np.load(path.with_name(path.name.replace("pairs", "cosines"))) > threshold]


def dedup_itself(folder: Path, nprobe: int) -> dict:
    original = np.load(folder / "original.npy")
    count = len(original)
    labels = components((pairs[(pairs < count).all(axis=1)] for pairs in pairs_above(folder, 0.6)), count)
    keep = self_dedup(labels)
    np.save(folder / "kept.npy", keep)
    first = np.unique(original, return_index=True)[1]  # a row of each original, to compare the copies with
    copies = np.setdiff1d(np.arange(count), first)
    together = (labels[copies] == labels[first[np.searchsorted(original[first], original[copies])]]).mean()
    found = np.unique(np.stack([labels, original]), axis=1)[0]  # labels, once for every original among theirs
    mixed = int((np.unique(found, return_counts=True)[1] > 1).sum())
    return {"kept": int(keep.sum()), "copies joined": f"{together:.2%}", "groups of several originals": mixed}


def dedup_against_references(folder: Path, nprobe: int) -> dict:
    original, copied = np.load(folder / "original.npy"), np.load(folder / "copied.npy")
    count, keep = len(original), np.load(folder / "kept.npy")
    total = count + len(np.load(folder / "references.npy", mmap_mode="r"))
    kept = relative_dedup(components(pairs_above(folder, 0.45), total), count)
    np.save(folder / "kept.npy", keep & kept)
    leaked = np.isin(original, copied)
    return {"dropped": int((~kept).sum()), "of the copied, dropped": f"{(~kept[leaked]).mean():.2%}"}


def kept_pool(folder: Path) -> np.ndarray:
    """The rows that both stages kept, as a file that later stages map."""
    if not (folder / "kept-pool.npy").exists():
        pool, rows = open_pool(folder), np.flatnonzero(np.load(folder / "kept.npy"))
        out = np.lib.format.open_memmap(folder / "kept-pool.npy", "w+", np.float16, (len(rows), pool.shape[1]))
        for start in range(0, len(rows), CHUNK):
            out[start : start + CHUNK] = pool[rows[start : start + CHUNK]]
    return np.load(folder / "kept-pool.npy", mmap_mode="r")


def index_kept(folder: Path, nprobe: int) -> dict:
    pool = kept_pool(folder)
    save_index(build_index([pool], pool.shape[1], len(pool)), folder / "kept.faiss")
    return {"rows": len(pool)}


def retrieve_by_neighbours(folder: Path, nprobe: int) -> dict:
    queries = np.load(folder / "references.npy")
    similarities, rows = search(load_index(folder / "kept.faiss"), queries, 32, nprobe)
    chosen, counts = retrieve_nearest(similarities, rows, 32)
    np.save(folder / "nearest.npy", similarities)
    return {"queries": len(queries), "chosen": len(chosen), "most often": int(counts.max())}


def recall_of_neighbours(folder: Path, nprobe: int) -> dict:
    """Of the true 32 nearest of some queries, compared with all rows, how many the index found."""
    some = slice(None, None, max(1, len(np.load(folder / "references.npy", mmap_mode="r")) // 500))
    queries, pool = np.load(folder / "references.npy")[some].astype(np.float32), kept_pool(folder)
    best = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(pool), CHUNK):
        best = np.concatenate([best, queries @ pool[start : start + CHUNK].astype(np.float32).T], axis=1)
        best = -np.sort(-best, axis=1)[:, :32]
    return {"share": float((np.load(folder / "nearest.npy")[some] >= best[:, -1:] - 1e-5).mean())}


def retrieve_by_clusters(folder: Path, nprobe: int) -> dict:
    pool, queries = kept_pool(folder), np.load(folder / "queries.npy")
    k = max(10, len(pool) // 500)
    centroids = kmeans(pool, k, 10, max_points_per_centroid=64)
    clusters, distances = assign(pool, centroids)
    rows = retrieve_clusters(clusters, assign(queries, centroids)[0], distances, 10_000, cap=1_000_000)
    return {"clusters": k, "queries": len(queries), "chosen": len(rows)}


def cluster_and_balance(folder: Path, nprobe: int) -> dict:
    pool = kept_pool(folder)
    sizes = [len(pool) // 250, len(pool) // 500]
    hierarchy = hierarchical_kmeans(pool, sizes, iterations=10, resampling_steps=2, max_points_per_centroid=64)
    rows = balanced_sample(hierarchy, len(pool) // 10)
    concept = np.load(folder / "concept.npy")[np.load(folder / "original.npy")[np.load(folder / "kept.npy")]]
    random = np.sort(np.random.default_rng(0).choice(len(pool), len(rows), replace=False))
    perplexity = []
    for chosen in (random, rows):
        share = np.bincount(concept[chosen]) / len(rows)
        perplexity.append(round(float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))))
    return {"clusters": sizes, "chosen": len(rows), "even concepts, random and balanced": perplexity}


STAGES: dict[str, Callable] = {
    "index of pool and references": index_pool,
    "pairs (64 neighbours)": find_pairs,
    "self-dedup (> 0.6)": dedup_itself,
    "relative dedup (> 0.45)": dedup_against_references,
    "index of what is left": index_kept,
    "retrieve by neighbours (32)": retrieve_by_neighbours,
    "retrieve by clusters": retrieve_by_clusters,
    "hierarchical k-means, balanced sample": cluster_and_balance,
}


IN_PROCESSES = {find_pairs}
"""Stages that run as several processes of one thread each; the others in one process with all threads."""


def run_stage(send, function: Callable, arguments: tuple) -> None:
    """In a process of its own: seconds, seconds of all cores, peak in bytes and findings of a stage."""
    start, start_busy = time.perf_counter(), time.process_time()
    findings = function(*arguments)
    seconds = time.perf_counter() - start
    own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = time.process_time() - start_busy + workers.ru_utime + workers.ru_stime
    peak = own.ru_maxrss + (int(os.environ["WORKERS"]) * workers.ru_maxrss if function in IN_PROCESSES else 0)
    send.send((seconds, busy, peak * 1024, findings))


def measured(workers: int, function: Callable, *arguments) -> tuple[float, float, int, dict]:
    os.environ.update(WORKERS=str(workers), OMP_NUM_THREADS=str(workers), OPENBLAS_NUM_THREADS=str(workers))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dinov2_hf.curation.vectors"])  # imported once, for all stages
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=run_stage, args=(send, function, arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} failed; its error is above") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--nprobe", type=int, default=16, help="lists that a query looks into")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cores to use")
    parser.add_argument("--folder", type=Path, help="for the files, 4 KB a row; by default a temporary one")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.rows < 4000:
        parser.error("--rows must be at least 4000")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        made = measured(options.workers, make, folder, options.rows, options.dim)[-1]["made"]
        print(f"{made}; {options.workers} workers, nprobe {options.nprobe}\n", flush=True)
        print("| stage | seconds | of cores | peak memory | found |\n| --- | ---: | ---: | ---: | --- |", flush=True)
        figures = {}
        for name, function in STAGES.items():
            seconds, busy, peak, findings = measured(options.workers, function, folder, options.nprobe)
            figures[name] = {"seconds": seconds, "core_seconds": busy, "peak_bytes": peak, **findings}
            found = "; ".join(
                f"{key} {f'{value:,}' if isinstance(value, int) else value}" for key, value in findings.items()
            )
            print(f"| {name} | {seconds:.1f} | {busy:.1f} | {peak / 1e9:.2f} GB | {found} |", flush=True)
        peak = max(figure["peak_bytes"] for figure in figures.values())
        total, busy = (sum(figure[key] for figure in figures.values()) for key in ("seconds", "core_seconds"))
        print(f"| all | {total:.1f} | {busy:.1f} | {peak / 1e9:.2f} GB | |")
        recall = measured(options.workers, recall_of_neighbours, folder, options.nprobe)[-1]["share"]
        print(f"\nOf the true 32 nearest neighbours, the index found {recall:.1%}.")
        if options.json:
            options.json.write_text(json.dumps({**figures, "recall": recall}, indent=2) + "\n")


if __name__ == "__main__":
    main()
