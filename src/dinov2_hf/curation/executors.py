"""Where the units of a stage run: datatrove's executors, on this machine, through SLURM or with Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.curation import ExecutorConfig
from .stage import Stage


def run_stage(stage: Stage, config: ExecutorConfig) -> None:
    """Runs all steps of a stage that are not done, here or with Ray, until they are.

    Raises:
        ValueError: what a unit raised, or (Ray) its last line.
    """
    for step in stage.steps():
        executor = _executor(stage, step, config)
        executor.run()
        if missing := executor.get_incomplete_ranks():  # Ray tells by nothing else
            log = Path(executor.logging_dir.path) / "logs" / f"task_{missing[0]:05d}.log"
            raise ValueError(f"{stage.name} {step}: task {missing[0]} failed: {_last_line(log)}; see {log}")
    stage.finish()


def submit_stage(stage: Stage, config: ExecutorConfig, before: Any = None) -> Any:
    """Queues all steps of a stage as SLURM jobs, each after the one before, the first after `before`; the last one."""
    from .units_step import COUNT

    for step in (*stage.steps(), COUNT):
        before = _executor(stage, step, config, before)
        before.run()
    return before


def _executor(stage: Stage, step: str, config: ExecutorConfig, before: Any = None) -> Any:
    try:
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
    except ImportError as error:
        raise ImportError('curation needs datatrove: pip install "dinov2_hf[curate]"') from error

    from .units_step import UnitsStep, threads_of

    tasks = min(config.tasks, stage.steps().get(step, 1))
    logs = str(stage.folder / "logs" / f"{step}-{tasks}")  # marks of other numbers of tasks are of other shares
    # a model is loaded once, and takes all cores or the accelerator
    workers = 1 if stage.embeds and config.kind == "local" else min(config.workers or tasks, tasks)
    if config.kind == "local":
        pipeline = [UnitsStep(stage, step, quiet=True, threads=threads_of(workers))]
        return LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=logs)
    pipeline = [UnitsStep(stage, step)]
    shared = {
        "tasks": tasks,
        "workers": workers,
        "logging_dir": logs,
        "cpus_per_task": config.cpus_per_task,
        "mem_per_cpu_gb": config.mem_per_cpu_gb,
        "gpus_per_task": config.gpus_per_task if stage.embeds else 0,
    }
    if config.kind == "ray":
        _start_ray()
        return RayPipelineExecutor(pipeline, **shared)
    return SlurmPipelineExecutor(
        pipeline,
        **shared,
        time=config.time,
        partition=config.partition,
        qos=config.qos,
        env_command=config.env_command or None,
        sbatch_args=dict(config.sbatch_args),
        job_name=f"curate-{stage.name}-{step}",
        depends=before,
    )


def _start_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names or that runs here, or starts one of this machine."""
    try:
        import ray
    except ImportError as error:
        raise ImportError('executor.kind=ray needs ray: pip install "dinov2_hf[ray]"') from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text().splitlines() if line.strip()] if log.is_file() else []
    return lines[-1] if lines else "it left no log"
