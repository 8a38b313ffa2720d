"""All stages of a curation in their order, each of which continues where it was killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import images_of, models_of, save_config
from ..config.curation import CurationConfig
from ..files import Output, beside, check_outputs, made_curation
from .assemble import AssembleStage
from .balance import BalanceStage
from .card import describe
from .collections import open_collections
from .dedup import DedupStage, RelativeStage
from .embed import EmbedStage, OpenModel, process_state
from .executors import run_stage, submit_stage
from .filter import FilterStage
from .hash_stage import HashesStage
from .hooks import load_hook
from .report import ReportStage
from .retrieve import RetrieveStage
from .stage import Context, Stage

Tell = Callable[[str], None]


def curate(config: CurationConfig, open_model: OpenModel, only: str | None = None, tell: Tell = print) -> None:
    """Runs the stages that are not complete, or those of one family; what other settings left is made anew.

    With `executor.kind=slurm` they are queued, and this returns. Under `accelerate launch` with several processes,
    `only` is the family of a stage that embeds, and all processes call this.

    Args:
        open_model: opens a backbone; a function of a module, because tasks import it.
        only: one of `config.curation.STAGES`; the stages before have to be complete.

    Raises:
        ValueError: anything that the configuration or the sources cause, with the remedy.
    """
    outputs = [Output("output_dir", Path(config.output_dir), made_curation, folder=True)]
    check_outputs(outputs, images_of(config), models_of(config))
    _require_packages()
    for hook in config.filter.hooks:
        load_hook(hook)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size > 1 and only not in ("embed", "concepts"):
        raise ValueError(
            f"{world_size} processes were launched, but only stages that embed share their work that way; add "
            "--stage embed, or launch without `accelerate launch` (executor.tasks divides the other stages)"
        )
    context = Context(config, open_collections(config))
    stages = build_stages(context, open_model)
    wanted = [stage for stage in stages if only is None or family_of(stage, config) == only]
    if not wanted:
        found = dict.fromkeys(family_of(stage, config) for stage in stages)
        raise ValueError(f"--stage {only} is not a part of this configuration; it has {', '.join(found)}")
    needed = _before(wanted)
    for before in stages:
        if before in needed and before not in wanted and before.counts is None:
            raise ValueError(
                f"--stage {only} builds on stage {before.name}, which is not complete with these settings; "
                f"run --stage {family_of(before, config)} first, or all of them without --stage"
            )
    context.output.mkdir(parents=True, exist_ok=True)
    if world_size > 1:
        _embed_together(wanted, context, tell)
        return
    with beside(context.output / "curation.yaml") as temporary:
        save_config(config, temporary)
    if config.executor.kind == "local":
        for stage in wanted:
            if isinstance(stage, EmbedStage) and stage.counts is None:
                stage.transform()  # a model that cannot be read is told before hours of work, not after
    _run(wanted, config, tell)


def build_stages(context: Context, open_model: OpenModel) -> list[Stage]:
    """The stages that the configuration asks for, each after those that it reads."""
    config = context.config
    filtered = FilterStage(context)
    hashed = HashesStage(context, filtered)
    embedded = EmbedStage("embed", context, "pool", "embed", open_model, hashed, filtered)
    kept: Stage = DedupStage(context, filtered, embedded)
    stages = [filtered, hashed, embedded, kept]
    if config.evaluations:
        sets = [_reference(context, f"evaluations.{name}", "embed", open_model) for name in config.evaluations]
        kept = RelativeStage(context, kept, embedded, sets)
        stages += [*sets, kept]
    concepts = embedded
    if config.concepts.model and config.selection != "all":
        kept = concepts = EmbedStage("concepts", context, "pool", "concepts", open_model, kept, filtered)
        stages.append(concepts)
    key = "concepts" if config.concepts.model else "embed"
    seeds = {name: _reference(context, f"seeds.{name}", key, open_model) for name in config.seeds}
    stages += seeds.values()
    if config.selection == "retrieve":
        stages.append(RetrieveStage(context, kept, concepts, seeds))
    elif config.selection == "balance":
        stages.append(BalanceStage(context, kept, concepts))
    selected = kept if config.selection == "all" else stages[-1]
    stages.append(AssembleStage(context, selected, filtered, seeds, list(stages)))
    stages.append(ReportStage(context, stages))
    return stages


def family_of(stage: Stage, config: CurationConfig) -> str:
    """By what `--stage` calls it."""
    return stage.key if isinstance(stage, EmbedStage) else stage.name


def _before(stages: list[Stage]) -> set[Stage]:
    """All stages that some stages read, and those that these read, and so on."""
    direct = {before for stage in stages for before in stage.after}
    return direct | _before(list(direct)) if direct else direct


def _reference(context: Context, collection: str, key: str, open_model: OpenModel) -> EmbedStage:
    return EmbedStage(f"{key}-{collection}", context, collection, key, open_model)


def _run(stages: list[Stage], config: CurationConfig, tell: Tell) -> None:
    queued = None
    for stage in stages:
        if stage.prepare():
            tell(f"{stage.name}: made anew, because its settings or a stage before it changed")
        if stage.counts is not None:
            tell(f"{stage.name}: {describe(stage.counts)} (was complete)")
            continue
        if config.executor.kind == "slurm":
            queued = submit_stage(stage, config.executor, queued)
            tell(f"{stage.name}: queued up to job {queued.job_id}")
            continue
        begin = time.monotonic()
        run_stage(stage, config.executor)
        counts: Any = stage.counts
        tell(f"{stage.name}: {describe(counts)} ({time.monotonic() - begin:.1f} s)")


def _embed_together(stages: list[Stage], context: Context, tell: Tell) -> None:
    """Stages that embed, shard by shard, by the processes of `accelerate launch`."""
    state = process_state()
    for stage in stages:
        with state.main_process_first():
            if state.is_main_process and stage.prepare():
                tell(f"{stage.name}: made anew, because its settings or a stage before it changed")
        step, units = next(iter(stage.steps().items()))
        for unit in range(state.process_index, units, state.num_processes):
            stage.complete(step, unit)
        # by the marks, not by a barrier: that would run into its time limit where shards differ in size
        while state.is_main_process and not all(stage.mark(step, unit).is_file() for unit in range(units)):
            time.sleep(1)
        if state.is_main_process:
            tell(f"{stage.name}: {describe(stage.finish())} ({state.num_processes} processes)")


def _require_packages() -> None:
    for module in ("faiss", "scipy", "datatrove"):
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(f'curation needs {module}: pip install "dinov2_hf[curate]"') from error
