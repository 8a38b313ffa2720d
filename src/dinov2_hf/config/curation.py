"""Curation: from a pile of images to a training set (DINOv2, section 3 and appendix A).

Where a field gives a published value, it is that of LVD-142M; the others are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from .checks import at_least, choice, named, positive
from .data import SourceConfig
from .paths import path_to

STAGES = ("filter", "hashes", "embed", "dedup", "relative", "concepts", "retrieve", "balance", "assemble", "report")
"""What `--stage` takes; a configuration has those that it needs."""
SELECTIONS = ("auto", "retrieve", "balance", "all")
EXECUTORS = ("local", "slurm", "ray")


@dataclass
class SeedConfig(SourceConfig):
    """A curated set, the like of which is looked for in the pool (section 3, "Image similarity")."""

    method: str = "auto"
    """nearest: the nearest images of every query; clusters: images of the clusters that queries fall in; auto: nearest
    above `retrieve.large_seed` images, clusters below (appendix A.4)."""
    num_neighbours: int = 4
    """Images of the pool taken for every query by `nearest`; published: 4, and 32 for ImageNet-1k (appendix A.4)."""
    include: bool = False
    """Put the set's own images into the result, too: "as is" in the paper's table 15."""

    def check_seed(self, key: str) -> None:
        choice(f"{key}.method", self.method, ("auto", "nearest", "clusters"))
        positive(f"{key}.num_neighbours", self.num_neighbours)


@dataclass
class FilterConfig:
    """Which images are looked at, at all. The paper gives no sizes; these keep what training can use."""

    min_side: int = 32
    """Shortest side in pixels."""
    max_aspect: float = 4.0
    """Longest side over the shortest."""
    min_deviation: float = 3.0
    """Standard deviation of the grey values (0 to 255), below which an image counts as blank."""
    hooks: list[str] = field(default_factory=list)
    """Functions of your own, as `module:function`, that drop an image or change it, such as a safety filter and the
    blurring of faces (section 3, "Data sources"): docs/curation.md."""

    def check(self) -> None:
        positive("filter.min_side", self.min_side)
        at_least("filter.max_aspect", self.max_aspect, 1)
        at_least("filter.min_deviation", self.min_deviation, 0)
        for hook in self.hooks:
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", hook):
                raise ValueError(f"filter.hooks has {hook!r}, not module:function; such as my_filters:is_safe")


@dataclass
class HashesConfig:
    """Exact and near-exact duplicates by hashes, before anything is embedded (section 3: PCA hashes; ours: DCT)."""

    max_distance: int = 2
    """Bits of 64 by which the perceptual hashes of duplicates may differ; -1: only files of equal bytes."""

    def check(self) -> None:
        if not -1 <= self.max_distance <= 15:
            raise ValueError(
                f"hashes.max_distance={self.max_distance} is not in -1 to 15; half of the 64 bits of unrelated images "
                "differ, use a few"
            )


@dataclass
class EmbedConfig:
    """Features of images. The paper has two networks: one for copies, one for concepts (appendix A.2 and A.4)."""

    model: str | None = field(default=None, metadata=path_to("model"))
    """A run, an export, or any vision transformer that `AutoModel` loads."""
    part: str = "cls"
    """cls, or mean (of the patches)."""
    resize_size: int = 0
    """Short side in pixels; 0: as the model's preprocessor says."""
    crop_size: int = 0
    """Side of the centre crop in pixels; 0: as the model's preprocessor says."""
    precision: str = "fp32"
    """What the network computes in: fp32, bf16 or fp16. Vectors are kept in float16 whatever it is."""
    batch_size: int = 64
    """Images per process and forward."""
    num_workers: int = 2
    """Processes that decode, for each process; 0 to do it in the process itself."""

    def check(self, key: str) -> None:
        choice(f"{key}.part", self.part, ("cls", "mean"))
        choice(f"{key}.precision", self.precision, ("fp32", "bf16", "fp16"))
        positive(f"{key}.batch_size", self.batch_size)
        for name in ("resize_size", "crop_size", "num_workers"):
            at_least(f"{key}.{name}", getattr(self, name), 0)
        if 0 < self.resize_size < self.crop_size:
            raise ValueError(f"{key}.resize_size={self.resize_size} is below crop_size={self.crop_size}")


@dataclass
class SearchConfig:
    """How nearest neighbours are found."""

    index: str = "auto"
    """flat: everything is compared; ivf: inverted lists; auto: flat up to 50,000 images."""
    num_lists: int = 0
    """Lists of ivf; 0: 4 times the square root of the number of images."""
    num_probes: int = 16
    """Lists that a query looks into; more find more."""

    def check(self) -> None:
        choice("search.index", self.index, ("auto", "flat", "ivf"))
        at_least("search.num_lists", self.num_lists, 0)
        positive("search.num_probes", self.num_probes)


@dataclass
class DedupConfig:
    """Near duplicates by features: neighbours above a similarity are one component (appendix A.3)."""

    num_neighbours: int = 64
    """Neighbours of every image that are looked at; published: 64 (appendix A.3)."""
    threshold: float = 0.6
    """Cosine above which two images of the pool are duplicates, of which one stays; published: 0.6 (appendix A.3)."""
    relative_threshold: float = 0.45
    """Cosine for duplicates of evaluation sets, of which none stays; published: 0.45 (appendix A.3)."""

    def check(self) -> None:
        positive("dedup.num_neighbours", self.num_neighbours)
        for name in ("threshold", "relative_threshold"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"dedup.{name}={getattr(self, name)} is not a cosine; published: 0.6 and 0.45")


@dataclass
class RetrieveConfig:
    """Images of the pool that are like those of the seed sets (appendix A.4)."""

    large_seed: int = 1_000_000
    """Images above which a seed set of `method: auto` takes the nearest of every query; published: 1M."""
    num_clusters: int = 100_000
    """Clusters of the pool for small seed sets; published: 100,000."""
    per_cluster: int = 10_000
    """Images taken from each cluster that has queries enough; published: 10,000."""
    min_queries: int = 3
    """A cluster needs more queries than this; published: 3."""
    cap: int = 1_000_000
    """Most images that a small seed set brings; published: 1M."""
    iterations: int = 20
    """Of k-means."""

    def check(self) -> None:
        for name in ("large_seed", "num_clusters", "per_cluster", "cap", "iterations"):
            positive(f"retrieve.{name}", getattr(self, name))
        at_least("retrieve.min_queries", self.min_queries, 0)


@dataclass
class BalanceConfig:
    """Equal shares of clusters of clusters, for pools without a seed set (Vo et al., 2024; not in DINOv2)."""

    target: int = 0
    """Images to take."""
    sizes: list[int] = field(default_factory=list)
    """Clusters of each level, the finest first; published: 10M, 500k, 50k, 10k of 743M images (Vo et al., section
    4.1); none: in this proportion to the pool."""
    resampling_steps: int = 10
    """Times that a level is clustered anew on the images nearest to its centroids (Vo et al., section 3.3)."""
    iterations: int = 20
    """Of every k-means."""

    def check(self) -> None:
        at_least("balance.target", self.target, 0)
        at_least("balance.resampling_steps", self.resampling_steps, 0)
        positive("balance.iterations", self.iterations)
        for size in self.sizes:
            positive("balance.sizes", size)


@dataclass
class AssembleConfig:
    """What is left at the end."""

    format: str = "parquet"
    """parquet or webdataset (tar)."""
    repeat: bool = False
    """Write an image as often as it was retrieved, as in LVD-142M (table 15); else once, with the number beside it."""

    def check(self) -> None:
        choice("assemble.format", self.format, ("parquet", "webdataset"))


@dataclass
class ReportConfig:
    """Pictures of what was found, to choose thresholds by looking."""

    samples: int = 12
    """Duplicate groups, queries and clusters shown, each."""

    def check(self) -> None:
        positive("report.samples", self.samples)


@dataclass
class ExecutorConfig:
    """Where the stages run: datatrove's executors. Results do not depend on it."""

    kind: str = "local"
    """local, slurm or ray."""
    tasks: int = 1
    """Tasks that the shards of a stage are divided among."""
    workers: int = 0
    """Tasks at a time; 0: all."""
    cpus_per_task: int = 1
    """slurm and ray."""
    mem_per_cpu_gb: int = 4
    """slurm and ray: GB of memory."""
    gpus_per_task: int = 0
    """slurm and ray, for the tasks that embed."""
    time: str = "24:00:00"
    """slurm: limit of a task."""
    partition: str = ""
    """slurm."""
    qos: str = "normal"
    """slurm."""
    env_command: str = ""
    """slurm: run first in every job, such as `source /my/venv/bin/activate`."""
    sbatch_args: dict[str, str] = field(default_factory=dict)
    """slurm: further options of sbatch, such as `account: mine`."""

    def check(self) -> None:
        choice("executor.kind", self.kind, EXECUTORS)
        at_least("executor.workers", self.workers, 0)
        at_least("executor.gpus_per_task", self.gpus_per_task, 0)
        for name in ("tasks", "cpus_per_task", "mem_per_cpu_gb"):
            positive(f"executor.{name}", getattr(self, name))
        if self.kind == "slurm" and not self.partition:
            raise ValueError("executor.partition is not set; name a partition of your cluster (sinfo lists them)")


@dataclass
class CurationConfig:
    """One curation, from sources to shards."""

    recipes: ClassVar[str] = "curate"

    output_dir: str = field(default="", metadata=path_to("output"))
    """Where everything lies: a folder that all machines see; default: `runs/curate_NAME` of the config file."""
    pool: dict[str, SourceConfig] = field(default_factory=dict)
    """Uncurated images, each source under a name of your own: `pool.web.path=/my/web`."""
    seeds: dict[str, SeedConfig] = field(default_factory=dict)
    """Curated sets, the like of which is retrieved: `seeds.birds.path=/my/birds`."""
    evaluations: dict[str, SourceConfig] = field(default_factory=dict)
    """Test sets whose images and near duplicates must not be in the result: `evaluations.birds.path=/my/birds`."""
    rows_per_shard: int = 10_000
    """Images of a shard of a source that is not streamed; of a streamed one every file is a shard."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    hashes: HashesConfig = field(default_factory=HashesConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """For duplicates, and for all else where `concepts` has no model."""
    concepts: EmbedConfig = field(default_factory=EmbedConfig)
    """For retrieval and balancing, where another network is better at it (appendix A.4); default: `embed`."""
    search: SearchConfig = field(default_factory=SearchConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    select: str = "auto"
    """What is taken of the images that are left: retrieve (like the seed sets), balance, all; auto: retrieve with seed
    sets, balance without."""
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    assemble: AssembleConfig = field(default_factory=AssembleConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    seed: int = 0
    """Of everything random: k-means, balancing, what the report shows."""

    @property
    def selection(self) -> str:
        """retrieve, balance or all."""
        if self.select != "auto":
            return self.select
        return "retrieve" if self.seeds else "balance"

    def check(self) -> CurationConfig:
        """Refuses impossible values and combinations.

        Raises:
            ValueError: naming the key, its value, the rule and what to use instead.
        """
        if not self.output_dir:
            raise ValueError("output_dir is not set; give a folder: output_dir=runs/curated")
        if not self.pool:
            raise ValueError("pool has no source; give one under a name of your own: pool.web.path=/my/images")
        for table in ("pool", "seeds", "evaluations"):
            for name, source in getattr(self, table).items():
                named(table, name)
                if not source.path:
                    raise ValueError(f"{table}.{name}.path is not set; give a folder: {table}.{name}.path=/my/images")
        for name, seed in self.seeds.items():
            seed.check_seed(f"seeds.{name}")
        positive("rows_per_shard", self.rows_per_shard)
        choice("select", self.select, SELECTIONS)
        for section in (
            *(self.filter, self.hashes, self.search, self.dedup, self.retrieve, self.balance, self.assemble),
            *(self.report, self.executor),
        ):
            section.check()
        self.embed.check("embed")
        self.concepts.check("concepts")
        if not self.embed.model:
            raise ValueError("embed.model is not set; give a run, an export or the name of a model on the Hub")
        if self.selection == "retrieve" and not self.seeds:
            raise ValueError("select=retrieve needs a seed set; give one: seeds.birds.path=/my/birds")
        if self.selection != "retrieve" and self.seeds:
            raise ValueError(f"select={self.select} does not use seeds.{next(iter(self.seeds))}; leave one of them out")
        if self.selection == "balance" and not self.balance.target:
            raise ValueError(
                "there is no seed set and balance.target=0; say what to take: seeds.NAME.path=/curated/images, "
                "balance.target=1000000, or select=all for everything that is no duplicate"
            )
        return self
