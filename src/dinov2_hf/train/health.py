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


class CollapseWatch:
    """Looks at the signs of health (`objectives.diagnostics`) and says once when one turns bad."""

    def __init__(self) -> None:
        self._best_rank = 0.0
        self._sharpest: dict[str, float] = {}
        self._warned: set[str] = set()

    def look(self, scalars: Mapping[str, float | None]) -> list[str]:
        """New warnings from what was logged, each with its reason and what to try.

        Targets that are uniform from the start are no warning: so they are until the features tell images apart.
        """
        finite = {name: value for name, value in scalars.items() if value is not None and math.isfinite(value)}
        found: dict[str, str] = {}
        rank = finite.get("rankme")
        if rank is not None:
            self._best_rank = max(self._best_rank, rank)
            if rank < _FALL * self._best_rank:
                found["rankme"] = (
                    f"CLS features are collapsing: their effective rank fell from {self._best_rank:.1f} to {rank:.1f}; "
                    "try a lower optim.base_lr, a higher teacher.momentum or a higher koleo.loss_weight, "
                    "and continue from a checkpoint before the fall"
                )
        for name, value in finite.items():
            kind, _, term = name.partition("/")
            if kind == "prototypes_used" and 0 < value < _ONE_SIDED:  # 0 is no sample at all
                found[name] = (
                    f"the {term} targets are collapsing: {value:.2%} of the prototypes take all samples; try "
                    "teacher.centering=sinkhorn_knopp, a higher teacher.temp or a lower optim.base_lr"
                )
            if kind == "target_entropy":
                sharpest = self._sharpest[name] = min(value, self._sharpest.get(name, 1.0))
                if value > _UNIFORM and sharpest < _INFORMATIVE:
                    found[name] = (
                        f"the {term} targets have become uniform (entropy {value:.1%} of its maximum, after "
                        f"{sharpest:.1%}): there is nothing left to learn from them; try a lower optim.base_lr or a "
                        "lower teacher.temp, and continue from a checkpoint before the rise"
                    )
        new = [message for name, message in found.items() if name not in self._warned]
        self._warned = set(found) | (self._warned - finite.keys())
        return new
