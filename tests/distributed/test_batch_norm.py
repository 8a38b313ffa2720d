"""Batch norm over two processes (gloo) against torch's batch norm on the samples of both."""

import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from dinov2_hf.backbones.batch_norm import SyncBatchNorm

CHANNELS = 6
CASES = {"even": (8, ()), "uneven": (3, ()), "one rank without samples": (0, ()), "maps": (2, (3, 4))}
"""Samples of the first rank, of 16, and the rest of the shape."""


def inputs_of(case: str) -> list[torch.Tensor]:
    """The samples of both ranks in each of two updates, far from zero: a sum of squares would cancel."""
    generator = torch.Generator().manual_seed(len(case))
    shape = (16, CHANNELS, *CASES[case][1])
    return [torch.randn(shape, generator=generator) * 2 + 30 for _ in range(2)]


def network() -> nn.Module:
    """Two norms, the second one behind the weights of a convolution, or of a linear layer."""
    torch.manual_seed(0)
    return nn.ModuleList([SyncBatchNorm(CHANNELS), nn.Conv1d(CHANNELS, CHANNELS, 1), SyncBatchNorm(CHANNELS)])


def train(layers: nn.Module, inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two updates of a loss that is a sum over samples: all outputs, gradients and running statistics."""
    found = {}
    for index, (values, weight) in enumerate(zip(inputs, weights)):
        values = values.clone().requires_grad_()
        hidden = layers[0](values)
        hidden = layers[1](hidden.flatten(2) if hidden.ndim > 2 else hidden.unsqueeze(2))
        output = layers[2](hidden.squeeze(2) if values.ndim == 2 else hidden.unflatten(2, values.shape[2:]))
        (output.sin() * weight).sum().backward()
        found |= {f"{index}.output": output.detach(), f"{index}.gradient": values.grad}
    found |= {f"parameter.{name}": value.grad for name, value in layers.named_parameters()}
    return found | {f"buffer.{name}": value for name, value in layers.named_buffers()}


def worker(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for number, (case, (first, _)) in enumerate(CASES.items()):
        rows = slice(None, first) if rank == 0 else slice(first, None)
        weights = [values.cos() for values in inputs_of(case)]
        found = train(network(), [each[rows] for each in inputs_of(case)], [each[rows] for each in weights])
        for name, value in found.items():
            if name.startswith("parameter."):  # as DistributedDataParallel, but for the mean
                dist.all_reduce(value)
        save_file({name: value.contiguous() for name, value in found.items()}, f"{folder}/{number}-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("batch_norm")
    launch(2, __file__, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_batch_norm_of_torch_on_all_samples(folder, case):
    number = list(CASES).index(case)
    ranks = [load_file(folder / f"{number}-{rank}.safetensors") for rank in range(2)]
    whole = nn.ModuleList(
        [nn.BatchNorm2d(CHANNELS) if isinstance(layer, SyncBatchNorm) else layer for layer in network()]
    )
    for norm in (whole[0], whole[2]):
        norm._check_input_dim = lambda input: None
    expected = train(whole.double(), [each.double() for each in inputs_of(case)], [x.cos() for x in inputs_of(case)])
    for name, value in expected.items():
        of_samples = name.endswith((".output", ".gradient"))
        for found in [torch.cat([rank[name] for rank in ranks])] if of_samples else [rank[name] for rank in ranks]:
            torch.testing.assert_close(found, value.to(found.dtype), atol=2e-5, rtol=1e-5, msg=lambda x, n=name: n + x)
    for name, value in ranks[0].items():
        if name.startswith("buffer."):
            assert torch.equal(value, ranks[1][name]), name


if __name__ == "__main__":
    worker(*sys.argv[1:])
