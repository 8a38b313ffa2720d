"""Add a term to the loss of DINOv2, train with it and without it, and compare.

    python examples/own_term.py --weight 1.0 train.epochs=2

The term keeps the standard deviation of each channel of the student's features above 1 over a batch, as VICReg does.
docs/extend/term.md has the contract of a term. Words `key=value` override the recipe `quickstart`. Half a minute on
two CPU cores.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from dinov2_hf import pretrain
from dinov2_hf.config import TermConfig
from dinov2_hf.objectives import FurtherTerm, register_term

CLOTHING = Path(__file__).parent / "data/clothing"
SETTINGS = ["train.epochs=0.5", "knn.reference.path=null", "optim.warmup_epochs=0.1", "train.log_every=4"]


@dataclass
class SpreadConfig(TermConfig):
    """The section `terms.spread`: `weight`, and the fields below."""

    target: float = 1.0
    """Standard deviation of a channel above which the term is 0."""


@register_term("spread", config=SpreadConfig)
class Spread(FurtherTerm):
    title = "lack of spread of the student's CLS over the batch"

    def forward(self, seen):
        deviation = seen.student.cls.float().var(dim=0).add(1e-4).sqrt()  # [2B, D] -> [D]
        return (self.config.target - deviation).clamp_min(0).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=CLOTHING, help="folder or set of images (default: the bundled photographs)")
    parser.add_argument("--output", type=Path, default=Path("runs/own_term"), help="folder of the runs")
    parser.add_argument("--weight", type=float, default=1.0, help="of the term")
    parser.add_argument("keys", nargs="*", metavar="key=value")
    args = parser.parse_args()

    for name, weight in {"without": 0.0, "with": args.weight}.items():
        keys = [*SETTINGS, f"terms.spread.weight={weight}", *args.keys]
        run = pretrain(args.data, args.output / name, config="quickstart", keys=keys)
        metrics = run.metrics()  # with weight 0 the term is measured, and changes nothing
        print(f"\n{name} the term:\n{metrics[['loss', 'loss/spread', 'rankme']].dropna().round(3)}")


if __name__ == "__main__":
    main()
