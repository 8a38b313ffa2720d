"""Time, memory and kernels of an update on a CUDA card, modelled on a CPU.

    python benchmarks/cuda_model.py S64 L64
    python benchmarks/cuda_model.py --card a100 --config configs/pretrain/vitl14_142m.yaml train.batch_size=64
    python benchmarks/cuda_model.py --config configs/distill/vits14_from_vitg14.yaml distill.teacher=preset:giant

The package's own training step runs on fake CUDA tensors, so torch takes the operations and the autocast rules of CUDA.
Every operation is booked with its kernels, the bytes they move and the FLOPs of their products, and put on the roofline
of the card. Updates of two and of three layers are run and extrapolated. Layers are not compiled. Nothing is measured:
the shares of the nominal figures that kernels achieve are constants (`cuda_cost/cards.py`), and fragmented memory and
gaps between kernels are left out. Expect times to be right within 20 %.

The key `objective` chooses what is modelled. `distill.teacher=preset:giant` builds the teacher from that preset; any
other teacher is read.

Names each operation that makes the host wait for the device. Prints Markdown tables, or with `--json` a line per case.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from cuda_cost import stub

_VITS = ("model.num_register_tokens=4", "model.drop_path_rate=0.1")
_RECIPE = (
    *("model.num_register_tokens=0", "model.use_swiglu_ffn=true", "model.drop_path_rate=0.4"),
    *("dino.bottleneck_dim=384", "optim.layerwise_decay=1.0"),
)
_CHECKPOINTED = ("model.gradient_checkpointing=true",)
CASES = {
    "S64": ("small", 64, 65536, _VITS),
    "S128": ("small", 128, 65536, _VITS),
    "B64": ("base", 64, 65536, _VITS),
    "L32": ("large", 32, 131072, _RECIPE),
    "L64": ("large", 64, 131072, _RECIPE),
    "L64-checkpointed": ("large", 64, 131072, (*_RECIPE, *_CHECKPOINTED)),
    "g24-checkpointed": ("giant", 24, 131072, (*_RECIPE, *_CHECKPOINTED)),
}
"""Preset, batch, prototypes of each head, and what else is set."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], metavar="YAML", help="a run's file; may be repeated")
    parser.add_argument("--card", default="h100", help="h100 (default), h200 or a100")
    parser.add_argument("--whole", action="store_true", help="run all layers instead of two and three")
    parser.add_argument("--logged", action="store_true", help="an update that is logged, with the signs of health")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="also the N most expensive operations")
    parser.add_argument("--json", action="store_true", help="print a line of JSON per case")
    parser.add_argument("cases", nargs="*", metavar="CASE or section.key=value", help=f"cases: {', '.join(CASES)}")
    args = parser.parse_intermixed_args()
    try:
        stub.load()
    except stub.StubUnavailable as error:
        parser.exit(3, f"cuda_model: {error}\n")

    # the stub has to be there before torch is
    from cuda_cost import report
    from cuda_cost.cards import CARDS
    from cuda_cost.extrapolate import Case, model_case

    if args.card not in CARDS:
        parser.error(f"--card {args.card} is not in the table; use one of {', '.join(CARDS)}")
    overrides = [item for item in args.cases if "=" in item]
    names = [item for item in args.cases if "=" not in item]
    for name in names:
        if name not in CASES:
            parser.error(f"{name!r} is neither a case ({', '.join(CASES)}) nor section.key=value")
    fixed = ("data.train.path=modelled", "train.output_dir=modelled")
    cases = [Case(name, None, (*_overrides_of(*CASES[name]), *overrides, *fixed)) for name in names]
    cases += [Case(path, path, (*overrides, *fixed)) for path in args.config]
    if not cases:
        parser.error(f"give a case ({', '.join(CASES)}) or --config")
    results = []
    for case in cases:
        start = time.perf_counter()
        try:
            result = model_case(case, CARDS[args.card], args.whole, args.logged)
        except (ValueError, FileNotFoundError) as error:
            parser.error(str(error))
        print(f"{case.name}: modelled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        results.append(result)
        if args.json:
            print(json.dumps(report.as_dict(result)))
    if not args.json:
        print(report.tables(results, args.operations))


def _overrides_of(preset: str, batch: int, prototypes: int, further: tuple[str, ...]) -> tuple[str, ...]:
    return (
        f"model.preset={preset}",
        f"train.batch_size={batch}",
        "train.precision=bf16",
        f"dino.num_prototypes={prototypes}",
        f"ibot.num_prototypes={prototypes}",
        "ibot.separate_head=true",
        *further,
    )


if __name__ == "__main__":
    main()
