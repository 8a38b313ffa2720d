"""Warnings of a run that is going wrong, from the numbers it logs."""

from __future__ import annotations

import math
from collections.abc import Mapping

_ONE_SIDED = 0.01
"""Share of the prototypes used below which all samples count as one."""
_UNIFORM, _INFORMATIVE = 0.995, 0.95
"""Entropies, as a share of their maximum, from which a target says nothing, and up to which it said something."""
_FALL = 0.25
"""Share of its best value to which the effective rank may fall."""
_EARLY = 0.1
"""Share of the run in which signs that are bad from the start are no failure yet."""
_ONE_DIRECTION = 2.0
"""Effective rank below which the features of all images lie on a line."""
_ONE_HOT, _ANSWERED = 0.05, 0.01
"""Entropy of a target, as a share of its maximum, and divergence in nats below which all targets are the same one."""


class CollapseWatch:
    """Looks at the signs of health (`objectives.diagnostics`) and says once when one turns bad.

    Args:
        num_steps: updates of the run.
        lr_key: the key of the learning rate, for messages.
    """

    def __init__(self, num_steps: int, lr_key: str = "optim.base_lr") -> None:
        self._num_steps, self._lr_key = num_steps, lr_key
        self._best_rank = 0.0
        self._sharpest: dict[str, float] = {}
        self._warned: set[str] = set()

    def look(self, scalars: Mapping[str, float | None]) -> list[str]:
        """New warnings from what was logged after `step` updates, each with its reason and what to try.

        What is bad from the start is a warning after a tenth of the run, once: until the features of images differ,
        targets are uniform, and a fresh network may give all images about the same features.
        """
        finite = {name: value for name, value in scalars.items() if value is not None and math.isfinite(value)}
        found: dict[str, str] = {}
        late = finite.get("step", 0.0) >= max(_EARLY * self._num_steps, 1)
        rank = finite.get("rankme")
        if rank is not None:
            self._best_rank = max(self._best_rank, rank)
            if rank < _FALL * self._best_rank:
                found["rankme"] = (
                    f"CLS features are collapsing: their effective rank fell from {self._best_rank:.1f} to {rank:.1f}; "
                    f"try a lower {self._lr_key}, a higher teacher.momentum or a higher koleo.loss_weight, "
                    "and continue from a checkpoint before the fall"
                )
            elif late and rank < _ONE_DIRECTION:
                found["one direction"] = (
                    f"CLS features are collapsed after a tenth of the run: their effective rank is {rank:.1f}, so all "
                    f"images look alike; in a new run try a lower {self._lr_key} and, where there are these keys, "
                    "model.layerscale_value=0.1 and koleo.loss_weight=0.1"
                )
        for name, value in finite.items():
            kind, _, term = name.partition("/")
            if kind == "prototypes_used" and 0 < value < _ONE_SIDED:  # 0 is no sample at all
                found[name] = (
                    f"the {term} targets are collapsing: {value:.2%} of the prototypes take all samples; try "
                    "teacher.centering=sinkhorn_knopp, a higher teacher.temp or a lower "
                    f"{self._lr_key}"
                )
            if kind == "target_entropy":
                sharpest = self._sharpest[name] = min(value, self._sharpest.get(name, 1.0))
                if value > _UNIFORM and sharpest < _INFORMATIVE:
                    found[name] = (
                        f"the {term} targets have become uniform (entropy {value:.1%} of its maximum, after "
                        f"{sharpest:.1%}): there is nothing left to learn from them; try a lower {self._lr_key} or a "
                        "lower teacher.temp, and continue from a checkpoint before the rise"
                    )
                elif late and value > _UNIFORM:
                    found[f"uniform {term}"] = (
                        f"the {term} targets are uniform after a tenth of the run (entropy {value:.2%} of its "
                        "maximum), and teach nothing; in a new run set teacher.target_entropy=0.8, or lower "
                        "teacher.temp and teacher.warmup_temp"
                    )
                divergence = finite.get(f"target_kl/{term}", 0.0)  # 0 is no sample at all
                if late and value < _ONE_HOT and 0 < divergence < _ANSWERED:
                    found[f"one {term}"] = (
                        f"the {term} targets are collapsed: their entropy is {value:.1%} of its maximum, and the "
                        f"student answers them to {divergence:.2g} nats; in a new run try "
                        "teacher.centering=sinkhorn_knopp or teacher.target_entropy=0.8"
                    )
        new = [message for name, message in found.items() if name not in self._warned]
        self._warned = set(found) | (self._warned - finite.keys())
        return new
