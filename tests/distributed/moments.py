"""Moments of a run at which a test ends it: entries of functions, and a while after."""

import functools
import importlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence

MOMENTS = {
    "start": "dinov2_hf.train.fit:load_checkpoint",
    "rewriting the metrics": "dinov2_hf.train.fit:MetricLog.__init__",
    "update": "dinov2_hf.train.step:TrainingStep.__call__",
    "log": "dinov2_hf.train.fit:MetricLog.write",
    "after log": "dinov2_hf.train.fit:Trainer._save",
    "checkpoint": "dinov2_hf.train.fit:save_checkpoint",
    "rename": "pathlib:Path.rename",
    "prune": "dinov2_hf.runs.folder:RunFolder.prune_checkpoints",
    "evaluation": "dinov2_hf.train.fit:Trainer._measure",
    "push": "dinov2_hf.hub.publish:push_folder",
    "export": "dinov2_hf.api.training:export_folder",
    "the end": "dinov2_hf.api.training:plot_metrics",
}
"""By name, the function whose entry it is."""


def mark_moments(signals: Sequence[dict], rank: int) -> Counter[str]:
    """Makes this process send itself signals, and returns how often each moment came: filled while it runs.

    Args:
        signals: each with `rank`; `moment` and `call`, the number of the call from 1; `delay` in seconds after its
            entry; `signal`. SIGKILL goes to the whole process group, data workers included.
        rank: of this process.
    """
    counts: Counter[str] = Counter(dict.fromkeys(MOMENTS, 0))

    def send(number: int, delay: float) -> None:
        time.sleep(delay)
        if number == signal.SIGKILL:
            os.killpg(0, number)
        os.kill(os.getpid(), number)

    def marked(moment: str, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            counts[moment] += 1
            for item in signals:
                if (item["rank"], item["moment"], item["call"]) == (rank, moment, counts[moment]):
                    arguments = item["signal"], item["delay"]
                    if item["delay"]:
                        threading.Thread(target=send, args=arguments, daemon=True).start()
                    else:
                        send(*arguments)
            return function(*args, **kwargs)

        return call

    for moment, place in MOMENTS.items():
        module, _, path = place.partition(":")
        *parents, name = path.split(".")
        owner = functools.reduce(getattr, parents, importlib.import_module(module))
        setattr(owner, name, marked(moment, getattr(owner, name)))
    return counts
