"""Warnings of a run that is going wrong, from the numbers it logs."""

from __future__ import annotations

from collections.abc import Mapping

_ONE_SIDED = 0.01
"""Share of the prototypes used below which all samples count as one."""
_UNIFORM = 0.995
"""Entropy, as a share of its maximum, from which a target says nothing."""
_FALL = 0.25
"""Share of its best value to which the effective rank may fall."""


class CollapseWatch:
    """Looks at the signs of health (`ssl.diagnostics`) and says once when one turns bad."""

    def __init__(self) -> None:
        self._best_rank = 0.0
        self._warned: set[str] = set()

    def look(self, scalars: Mapping[str, float], settled: bool) -> list[str]:
        """New warnings, each with its reason and what to try.

        Args:
            scalars: what was logged.
            settled: whether the warm-ups are over; before, uniform targets are what one expects.
        """
        found: dict[str, str] = {}
        rank = scalars.get("rankme")
        if rank is not None:
            self._best_rank = max(self._best_rank, rank)
            if rank < _FALL * self._best_rank:
                found["rankme"] = (
                    f"CLS features are collapsing: their effective rank fell from {self._best_rank:.1f} to {rank:.1f}; "
                    "try a lower optim.base_lr, a higher teacher.momentum or a higher koleo.loss_weight, "
                    "and continue from a checkpoint before the fall"
                )
        for name, value in scalars.items():
            kind, _, term = name.partition("/")
            if kind == "prototypes_used" and value < _ONE_SIDED:
                found[name] = (
                    f"the {term} targets are collapsing: {value:.2%} of the prototypes take all samples; try "
                    "teacher.centering=sinkhorn_knopp, a higher teacher.temp or a lower optim.base_lr"
                )
            if kind == "target_entropy" and settled and value > _UNIFORM:
                found[name] = (
                    f"the {term} targets are uniform (entropy {value:.1%} of its maximum): there is nothing to learn "
                    f"from them; try a lower teacher.temp, or fewer prototypes ({term}.num_prototypes)"
                )
        new = [message for name, message in found.items() if name not in self._warned]
        self._warned = set(found)
        return new
