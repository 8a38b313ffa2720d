"""The cost model of `benchmarks/cuda_model.py`; `tests/train/test_cuda.py` tests what it says of each objective."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..tiny import TINY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

BOOKED = f"""
import json, sys
from cuda_cost import stub
try:
    stub.load()
except stub.StubUnavailable as error:
    sys.exit(str(error))
import torch
from cuda_cost.cards import CARDS
from cuda_cost.device import fake_cuda
from cuda_cost.extrapolate import Case, model_case
from cuda_cost.ledger import DEVICE, Ledger
from cuda_cost.report import as_dict

card = CARDS["h100"]
overrides = {TINY} + ["data.train.path=noise", "model.num_hidden_layers=5", "train.precision=bf16"]
case = Case("tiny", None, tuple(overrides))
results = {{name: as_dict(model_case(case, card, whole)) for name, whole in (("few", False), ("all", True))}}

ledger = Ledger(card)
with fake_cuda(), ledger:
    ledger.start()
    with ledger.part("product"):
        product = torch.zeros(4096, 1024, device=DEVICE).half() @ torch.zeros(1024, 2048, device=DEVICE).half()
    del product
    with ledger.part("copies"):
        torch.zeros(1000).to(DEVICE)
        torch.zeros(1000, device=DEVICE)[0] = 1.0
        torch.zeros(1000, device=DEVICE).cpu()
        torch.zeros(10).to(DEVICE, non_blocking=True)
        torch.zeros(100_000).to(DEVICE, non_blocking=True)
        torch.zeros(100_000).pin_memory().to(DEVICE, non_blocking=True)
results["product"] = vars(ledger.costs["product", "mm"])
results["kernels"] = sum(cost.kernels for (part, _), cost in ledger.costs.items() if part == "product")
results["peak"] = ledger.peak
results["waits"] = [wait.partition(" at ")[0] for wait in ledger.synchronizations]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def booked():
    """A tiny update, extrapolated and whole; a product; copies."""
    ran = subprocess.run([sys.executable, "-c", BOOKED], cwd=BENCHMARKS, capture_output=True, text=True)
    if ran.returncode and "g++" in ran.stderr:
        pytest.skip(f"did not run: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_extrapolating_from_two_and_three_layers_equals_running_all_of_them(booked):
    few, whole = booked["few"], booked["all"]
    for name in ("flops", "plain_flops"):
        assert few[name] == whole[name] > 0
    for name in ("bytes", "peak_memory", "device_seconds", "kernels"):
        assert few[name] == pytest.approx(whole[name], rel=0.01)


def test_a_product_costs_its_operations_and_each_of_its_matrices_once(booked):
    m, k, n = 4096, 1024, 2048
    product = booked["product"]
    assert product["flops"] == 2 * m * k * n
    assert product["bytes"] == 2 * (m * k + k * n + m * n)
    assert product["flops"] / 989e12 < product["seconds"] < 2 * product["flops"] / 989e12
    assert booked["kernels"] == 5  # two fills, two casts, the product


def test_memory_that_is_freed_no_longer_counts(booked):
    m, k, n = 4096, 1024, 2048
    # operands in half precision, and at first the second of them in float32 too
    assert booked["peak"] == max(2 * (m * k + k * n) + 4 * k * n, 2 * (m * k + k * n + m * n), 6 * m * k)


def test_copies_that_block_are_waits_and_those_from_pinned_or_little_memory_are_not(booked):
    blocking = "blocking copy from the host"
    assert booked["waits"] == [blocking, blocking, "copy to the host", "copy from pageable memory of the host"]


def test_without_a_compiler_one_line_says_what_to_install(tmp_path):
    command = [sys.executable, "cuda_model.py", "S64"]
    environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run(command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True)
    assert ran.returncode == 3 and len(ran.stderr.splitlines()) == 1 and "install g++" in ran.stderr
