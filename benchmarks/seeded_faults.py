"""Plants known faults in a copy of a source tree, one at a time, and reports which of them its tests catch.

    nice python benchmarks/seeded_faults.py --source . --results faults.json             # all; hours on two cores
    python benchmarks/seeded_faults.py --source . --results faults.json --faults 3,7
    python benchmarks/seeded_faults.py --source . --results fast.json --markers "not slow"
    python benchmarks/seeded_faults.py --source . --list                                 # where each fault lies

For each fault only the files of tests that import the changed module are run, until the first test fails; where all
pass, then those that import a module that imports it, and then the others in the folder of tests of its part of the
package, which may reach it through a registry. The test that fails is then run without the fault: only a test that
passes there has caught it. Results are added to the JSON file after each fault, and faults that it already holds are
not run again, so an interrupted run continues.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = "dinov2_hf"
LIMIT = 3600
"""Seconds for the tests of a fault."""


@dataclass(frozen=True)
class Fault:
    """A change of one place in the package."""

    find: str
    """Text that stands once in the package."""
    replace: str
    breaks: str


FAULTS = [
    # terms of the objectives
    Fault("losses = -(target * log", "losses = (target * log", "the sign of the cross-entropy over prototypes"),
    Fault(
        "features_grad /= lift * student_temp", "features_grad /= lift", "the gradient lacks the student's temperature"
    ),
    Fault("count, 1 - self.momentum)", "count, self.momentum)", "centering moves by its momentum, not by the rest"),
    Fault("self.center[0] / -temperature", "self.center[0] / temperature", "the centre is added, not subtracted"),
    Fault("in range(num_iterations):", "in range(num_iterations - 1):", "Sinkhorn-Knopp makes one iteration fewer"),
    Fault("share / global_sum_(sums)", "share / sums", "Sinkhorn-Knopp scales prototypes by one process' batch"),
    Fault(
        ".diagonal(first).fill_(-1)", ".diagonal(first).fill_(1)", "each feature is its own nearest neighbour in KoLeo"
    ),
    Fault("return -torch.log(distances + eps)", "return torch.log(distances + eps)", "the sign of KoLeo"),
    Fault(
        "targets.float(), targets.shape[-1:])",
        "targets.float(), targets.shape)",
        "feature targets are normalised together",
    ),
    # heads and averages
    Fault(
        "normalize(features.float(), dim=-1).to(dtype)",
        "normalize(features.float(), dim=0).to(dtype)",
        "the bottleneck is normalised over the batch",
    ),
    Fault(
        "trunc_normal_(module.weight, std=0.02)",
        "trunc_normal_(module.weight, std=0.2)",
        "the initialisation of the heads",
    ),
    Fault(
        "trained, alpha=1 - ",
        "trained, alpha=",
        "the moving average adds the student times the momentum",
    ),
    Fault("average.eval()", "average.train()", "the teacher drops layers"),
    # backbone
    Fault(
        "torch.where(bool_masked_pos.unsqueeze(-1),",
        "torch.where(bool_masked_pos.unsqueeze(-1) & False,",
        "the mask is dropped",
    ),
    Fault("group.batch / len(indices), device", "1.0, device", "kept residual branches are not scaled up"),
    Fault(
        ".lambda1, self.config.layerscale_value)",
        ".lambda1, 1.0)",
        "the initialisation of LayerScale",
    ),
    Fault("(self.cls_token + cls_position)", "self.cls_token", "CLS lacks its position"),
    Fault(
        "tuple((new + offset) / old for", "tuple(new / old for", "position embeddings are resampled without the offset"
    ),
    # data
    Fault("width * height * rng.uniform(*scale)", "width * height * rng.uniform(*scale) ** 2", "the scale of crops"),
    Fault("crop[:, :, ::-1] if flip", "crop[:, ::-1] if flip", "crops are flipped upside down"),
    Fault("tuple(-m / s for m, s in", "tuple(0 * m / s for m, s in", "the mean is not subtracted"),
    Fault(
        "table[1, Parameter.SOLARIZE]", "table[0, Parameter.SOLARIZE]", "the first view is solarised, not the second"
    ),
    Fault("* rng.uniform(smallest, largest))", "* largest)", "the share of masked patches"),
    Fault("_MASKS, number, self._rank]", "_MASKS, number]", "processes draw the same masks"),
    Fault(
        "(number * self._world_size + self._rank) * images",
        "number * self._world_size * images",
        "processes read the same images",
    ),
    Fault("_CROPS, slot.epoch, slot.index", "_CROPS, 0, slot.index", "crops are the same in every epoch"),
    # step and schedules
    Fault(
        "values_at(self.schedules, self.step)",
        "values_at(self.schedules, self.step + 1)",
        "schedules are shifted by one update",
    ),
    Fault(
        "(global_batch_size / 1024) ** 0.5", "(global_batch_size / 1024)", "the learning rate is linear in the batch"
    ),
    Fault(
        "clip_grad_norm_(network.parameters(), limit)",
        "clip_grad_norm_(self.model.parameters(), limit)",
        "networks are clipped together",
    ),
    Fault('values.weight_decay * group["weight_decay_multiplier"]', "values.weight_decay", "biases are decayed"),
    Fault("values.last_layer_lr if group", "values.lr if group", "the last layer is not frozen at the start"),
    # checkpoints
    Fault("start=self.step * self.accumulation", "start=0", "a resumed run reads from the first image on"),
    Fault("torch.tensor(self.state.counters,", "torch.tensor([0.0, 0.0],", "a resumed run forgets its counters"),
    Fault(
        "sha256_of(folder / name) != entry.sha256", "len(sha256_of(folder / name)) != 64", "checksums are not compared"
    ),
    Fault(
        "_looks_damaged(checkpoint)][-keep:]", "_looks_damaged(checkpoint)][:keep]", "the oldest checkpoints are kept"
    ),
    # weights
    Fault(
        "zip(_QKV, tensor.chunk(3))",
        "zip(_QKV[::-1], tensor.chunk(3))",
        "query and value of original weights are exchanged",
    ),
    Fault(
        "0.1 if registers is None else 0.0",
        "0.0 if registers is None else 0.1",
        "the offset of original position embeddings",
    ),
    # evaluation
    Fault("error /= len(inputs)", "error /= 1", "the linear probe sums over the batch"),
    Fault(
        "votes = ((similarities - 1) / temperature)",
        "votes = ((similarities - 1) * temperature)",
        "the temperature of k-NN votes",
    ),
    # curation
    Fault(
        "np.lexsort((rows, -rank, labels[rows]))",
        "np.lexsort((rows, rank, labels[rows]))",
        "the worst image of duplicates is kept",
    ),
]


def find_module(tree: Path, fault: Fault) -> Path:
    """The file of a tree's package that a fault changes.

    Raises:
        ValueError: the text does not stand there once.
    """
    counts = {path: path.read_text().count(fault.find) for path in sorted((tree / "src" / PACKAGE).rglob("*.py"))}
    found = [path for path, count in counts.items() if count]
    if sum(counts.values()) != 1:
        raise ValueError(f"{fault.find!r} stands {sum(counts.values())} times in {tree}; change the fault to fit")
    return found[0]


@cache
def imports_of(tree: Path, file: Path) -> frozenset[tuple[Path, str]]:
    """Files of a tree that a file imports from, and the imported names (empty: the whole file)."""

    def root(dotted: str) -> Path:
        return tree / "src" if dotted.split(".")[0] == PACKAGE else tree

    def places(base: Path, dotted: str, name: str) -> set[tuple[Path, str]]:
        place = base.joinpath(*filter(None, dotted.split(".")))
        whole = [(place / name / "__init__.py", ""), ((place / name).with_suffix(".py"), "")] if name else []
        whole += [(place / "__init__.py", name), (place.with_suffix(".py"), name)]
        return set([one for one in whole if one[0].is_file()][:1])

    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else root(node.module)
            for alias in node.names:
                found |= places(base, node.module or "", alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found |= places(root(alias.name), alias.name, "")
    return frozenset(found)


def tests_of(tree: Path, module: Path) -> tuple[list[str], ...]:
    """Files of a tree's tests in the order in which they are run for a module, each once.

    Those that import it, those that import a module which imports it, and those of its part of the package. An import
    counts that goes through an `__init__` of the package or a helper of the tests.
    """
    tree, module = tree.resolve(), module.resolve()

    def reached(file: Path, targets: set[Path]) -> bool:
        """Whether a file imports a target, through packages and helpers of tests only."""
        waiting, seen = list(imports_of(tree, file)), set()
        while waiting:
            place, name = waiting.pop()
            if place in targets:
                return True
            package = place.name == "__init__.py" and tree / "src" in place.parents
            if (place, name) not in seen and (package or tree / "tests" in place.parents):
                seen.add((place, name))
                waiting += [(to, of) for to, of in imports_of(tree, place) if not package or name in ("", of, to.stem)]
        return False

    def users(files: list[Path], targets: set[Path]) -> set[Path]:
        return {file for file in files if reached(file, targets)}

    tests = sorted((tree / "tests").rglob("test_*.py"))
    modules = [file for file in (tree / "src" / PACKAGE).rglob("*.py") if file.name != "__init__.py"]
    direct = users(tests, {module})
    further = users(tests, users(modules, {module})) - direct
    part = tree / "tests" / module.relative_to(tree / "src" / PACKAGE).parts[0]
    others = {file for file in tests if part in file.parents} - direct - further
    return tuple(sorted(str(file.relative_to(tree)) for file in files) for files in (direct, further, others))


def run_tests(tree: Path, arguments: list[str]) -> str | None:
    """Runs tests of a tree until one fails; the name of that test, None where all pass.

    Raises:
        RuntimeError: pytest ended without running tests.
    """
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT} s"
    if done.returncode in (0, 5):  # 5: all are deselected
        return None
    cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            file = case.get("classname", "").replace(".", "/") + ".py"
            return f"{file}::{case.get('name')}" if case.get("classname") else case.get("name")
    raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


def try_fault(tree: Path, fault: Fault, markers: str | None) -> dict:
    """Plants a fault in a tree, runs the tests of its module, and takes it out again."""
    start = time.monotonic()
    file = find_module(tree, fault)
    text = file.read_text()
    result = {"breaks": fault.breaks, "module": str(file.relative_to(tree)), "caught by": None, "fail without it": []}
    for tests in filter(None, tests_of(tree, file)):
        selected = ["-m", markers] if markers else []
        file.write_text(text.replace(fault.find, fault.replace))
        try:
            failed = run_tests(tree, ["-n", "2", "--dist", "loadscope", *selected, *tests])
        finally:
            file.write_text(text)
        if failed and ("::" not in failed or run_tests(tree, [failed])):
            result["fail without it"].append(failed)
        elif failed:
            result["caught by"] = failed
            break
    return result | {"seconds": round(time.monotonic() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a checkout, of this or another commit")
    parser.add_argument("--results", type=Path, default=Path("seeded_faults.json"), help="JSON file that is continued")
    parser.add_argument("--faults", help="numbers such as 3,7 (default: all)")
    parser.add_argument("--markers", help='expression for pytest -m, such as "not slow" (default: all tests)')
    parser.add_argument("--list", action="store_true", help="print module and tests of each fault, and run nothing")
    args = parser.parse_args()
    numbers = [int(number) for number in args.faults.split(",")] if args.faults else range(1, len(FAULTS) + 1)
    if args.list:
        for number in numbers:
            file = find_module(args.source, FAULTS[number - 1])
            direct, further, others = map(len, tests_of(args.source, file))
            place = file.relative_to(args.source)
            print(f"{number}. {FAULTS[number - 1].breaks}: {place}, {direct}, {further} and {others} files of tests")
        return
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    with tempfile.TemporaryDirectory(prefix="seeded_faults-") as folder:
        tree = Path(folder).resolve() / "tree"
        shutil.copytree(args.source, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"))
        for number in numbers:
            if str(number) not in results:
                results[str(number)] = found = try_fault(tree, FAULTS[number - 1], args.markers)
                args.results.write_text(json.dumps(results, indent=1))
                print(f"{number}. {found['breaks']}: {found['caught by'] or 'NOT CAUGHT'}", flush=True)
    caught = sum(bool(results[str(number)]["caught by"]) for number in numbers)
    print(f"{caught} of {len(numbers)} faults caught")


if __name__ == "__main__":
    main()
