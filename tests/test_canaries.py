"""Seams of torch, transformers, accelerate and datasets that we rely on; a new release that moves one fails here."""

import datasets
import torch
import torch.utils.data
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import dinov2_hf  # noqa: F401 - registers the attention implementation


def test_fused_adamw_skips_a_step_whose_gradient_is_marked_as_not_finite():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.5, fused=True)
    for found_inf, moves in ((1.0, False), (0.0, True)):
        parameter.grad = torch.ones(3)
        optimizer.found_inf = torch.tensor(found_inf)
        before = parameter.detach().clone()
        optimizer.step()
        assert torch.equal(parameter, before) != moves
    assert optimizer.state[parameter]["step"].item() == 1  # the skipped step is not counted


def test_accelerate_hands_the_optimizer_through():
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(torch.nn.Linear(2, 2), torch.optim.AdamW([torch.zeros(1)], fused=True))
    assert isinstance(optimizer.optimizer, torch.optim.AdamW)
    assert accelerator.scaler is None


def test_classes_outside_transformers_are_saved_under_their_own_names():
    """transformers renames tensors of its own DINOv2 classes on saving and loading, but not those of other packages."""
    assert PreTrainedModel.is_custom_code() is False
    assert dinov2_hf.Dinov2Model.is_custom_code() is True


def test_attention_implementations_are_found_by_name():
    for name in ("sdpa", "flash_attention_2", "flex_attention", "xformers"):
        assert callable(ALL_ATTENTION_FUNCTIONS[name]), name


class Whole(torch.utils.data.IterableDataset):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        yield [value for rows in self.stream.iter(batch_size=2) for value in rows["x"]]


def test_iter_gives_every_sample_in_every_worker():
    stream = datasets.Dataset.from_dict({"x": list(range(7))}).to_iterable_dataset()
    loader = torch.utils.data.DataLoader(Whole(stream), batch_size=None, num_workers=2)
    assert list(loader) == [list(range(7))] * 2


def test_a_stream_of_parquet_divides_into_its_files_and_a_file_into_its_row_groups(tmp_path):
    for file in range(2):
        rows = datasets.Dataset.from_dict({"x": list(range(10 * file, 10 * file + 7))})
        rows.to_parquet(tmp_path / f"{file}.parquet", batch_size=3)
    builder = datasets.load_dataset_builder("parquet", data_files={"train": str(tmp_path / "*.parquet")})
    stream = builder.as_streaming_dataset(split="train")
    assert list(builder.config.data_files["train"]) == [str(tmp_path / f"{file}.parquet") for file in range(2)]
    assert stream.num_shards == 2
    groups = stream.shard(num_shards=2, index=1).reshard()
    assert groups.num_shards == 3
    assert [[row["x"] for row in groups.shard(num_shards=3, index=group)] for group in range(3)] == [
        [10, 11, 12],
        [13, 14, 15],
        [16],
    ]


def test_a_saved_set_is_streamed_in_shards_of_consecutive_rows_the_longer_ones_first():
    stream = datasets.Dataset.from_dict({"x": list(range(11))}).to_iterable_dataset(3)
    shards = [stream.shard(num_shards=3, index=shard) for shard in range(3)]
    assert [[row["x"] for row in shard] for shard in shards] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_bfloat16_support_of_the_processor_can_be_asked():
    assert torch.cpu._is_avx512_bf16_supported() in (True, False)


def test_weight_norm_kernel_divides_each_row_by_its_length():
    direction, length = torch.randn(5, 3), torch.rand(5, 1)
    expected = length * direction / direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch._weight_norm(direction, length, 0), expected)


def test_accelerate_fills_every_view_of_its_state_from_the_partial_one():
    """Hence `build_accelerator` writes FSDP into both: the optimiser's view would otherwise switch it off again."""
    accelerator = Accelerator(cpu=True)
    before = accelerator.state.distributed_type
    accelerator.state.distributed_type = DistributedType.FSDP
    assert AcceleratorState().distributed_type == before == PartialState().distributed_type
