"""Each script under benchmarks/ runs to its end at its smallest sizes and prints what it measures.

This file is a server as well, which imports everything once and forks a process for each script.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.data import EvalTransform, preprocessor_config
from dinov2_hf.weights.folder import write_folder

from ..patience import HANGS

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "examples" / "data" / "clothing"

SCRIPTS = {
    "accuracy": ("RUN --images IMAGES --tiny", "| test | "),
    "curate": ("--rows 4000 --workers 1", "Of the true 32 nearest neighbours, the index found"),
    "data": ("--sizes 32 --images 1 --rounds 1", "| colours and normalisation |"),
    "dedup_quality": ("--model MODEL --images 4 --size 28 --distances 2 --thresholds 0.9", "| cosine > 0.9 |"),
    "distillation": ("--tiny --output OUTPUT", "| distilled, features |"),
    "evaluation": ("--tiny", "52 heads of 1,000 classes"),
    "frozen_forward": ("--preset tiny --batch 1 --size 28 --pairs 2", "stock/ours"),
    "frozen_teacher": ("--tiny", "| bfloat16, sharded over 2 processes, each |"),
    "fuzz_checkpoints": ("--damages 2", "; 0 went wrong; "),
    "fuzz_folders": ("--layouts 2", ": 0 layouts differ;"),
    "kill_runs": ("--kills 1", "runs that differ: none"),
    "listing": ("100", "| `datasets`, second start | 101 | "),
    "memory": ("--tiny", "| pruned last layer |"),
    "objectives": ("--tiny --seeds 1 --only dino-vit simdino-resnet --output OUTPUT", "| simdino-resnet | 2 | "),
    "page_memory": ("--tiny", "| 2, all tabs closed | "),
    "seeded_runs": ("--only swiglu --updates 2 --threads 1 --output OUTPUT", " s, 0 failed: "),
    "seeded_faults": ("--source . --list", "40. "),
    "soak": ("--objective distill_features --minutes 0.1 --every 0.2 --output OUTPUT", "| disk, checkpoints, MB |"),
    "startup": ("--runs 1", "| `import dinov2_hf.config` | "),
    "step_against": ("--tiny --pairs 1 --other ROOT", "| tiny | "),
    "step": ("--tiny --steps 1 --warmup 1 --profile", '"seconds_per_update": '),
    "stopped_runs": ("--only dinov2-hf --ends SIGTERM", "| dinov2-hf | SIGTERM | 143 | "),
}
"""Arguments of the smallest run of each script, and a part of the last thing that it prints."""
ELSEWHERE = {"cuda_acceptance", "cuda_model"}
"""Scripts with a file of tests of their own."""


def serve() -> None:
    """Runs a script for each line of JSON on the standard input, and answers with its exit code."""
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # noqa: F401  all that the scripts would import later
    import torch.utils.tensorboard  # noqa: F401

    import dinov2_hf.api  # noqa: F401
    import dinov2_hf.curation.vectors  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            signal.alarm(HANGS)
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
            for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
                os.dup2(file, number)
            sys.argv = [job["script"], *job["arguments"]]
            sys.path[0] = str(Path(job["script"]).parent)
            runpy.run_path(job["script"], run_name="__main__")
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.test_scripts"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # NiceGUI takes a process with PYTEST_CURRENT_TEST for one of its own tests
        env={name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
        | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export of a tiny backbone."""
    folder = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28}
    transform = EvalTransform(28, 28, [0.5] * 3, [0.5] * 3)
    write_folder(folder, Dinov2Model(Dinov2Config.preset("tiny", **shape)), preprocessor_config(transform))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one update."""
    folder = tmp_path_factory.mktemp("run")
    keys = "model.family=resnet model.preset=tiny crops.global_size=32 crops.num_local=0 optim.warmup_epochs=0"
    keys += " train.batch_size=2 train.epoch_length=1 train.epochs=1 data.num_workers=0"
    command = [sys.executable, "-m", "dinov2_hf", "pretrain", IMAGES, "--output", folder, "objective=simdino"]
    subprocess.run([*command, *keys.split()], check=True, cwd=ROOT)  # this process has an accelerator already
    return folder


def test_every_script_has_its_smallest_arguments_here():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - ELSEWHERE == set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_runs_to_its_end_and_prints_what_it_measures(name, server, model, run, tmp_path):
    arguments, printed = SCRIPTS[name]
    places = {
        "ROOT": str(ROOT),
        "MODEL": str(model),
        "RUN": str(run),
        "IMAGES": str(IMAGES),
        "OUTPUT": str(tmp_path / "output"),
    }
    job = {"script": str(ROOT / "benchmarks" / f"{name}.py"), "log": str(tmp_path / "log.txt")}
    job["arguments"] = [places.get(argument, argument) for argument in arguments.split()]
    print(json.dumps(job), file=server.stdin, flush=True)
    code = int(server.stdout.readline())
    log = (tmp_path / "log.txt").read_text()
    assert code == 0, log
    assert printed in log


if __name__ == "__main__":
    serve()
