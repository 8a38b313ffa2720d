"""Frozen forward of our backbone against the stock transformers class on the same weights, in one run.

    python benchmarks/frozen_forward.py                # ViT-S/14, batch 8 at 224, float32, sdpa
    python benchmarks/frozen_forward.py --preset base --dtype bfloat16 --device cuda

Both are timed in turn, pair by pair, so that a machine whose speed drifts treats them alike. The figure to quote is the
median of the paired ratios; above 1 means that ours is faster.
"""

import argparse
import statistics
import tempfile
import time

import torch
from transformers import AutoModel

from dinov2_hf import Dinov2Config, Dinov2Model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--registers", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="pixels")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args()

    dtype = getattr(torch, args.dtype)
    config = Dinov2Config.preset(args.preset, num_register_tokens=args.registers, image_size=args.size[0])
    ours = Dinov2Model._from_config(config, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        stock = AutoModel.from_pretrained(folder, attn_implementation="sdpa")
    models = {"ours": ours, "stock": stock}
    for model in models.values():
        model.to(args.device, dtype).eval()

    def seconds(model: torch.nn.Module, pixels: torch.Tensor) -> float:
        start = time.perf_counter()
        model(pixels)
        if args.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, {args.dtype}, {args.preset}")
    for size in args.size:
        pixels = torch.randn(args.batch, 3, size, size, device=args.device, dtype=dtype)
        with torch.inference_mode():
            difference = (ours(pixels).last_hidden_state - stock(pixels).last_hidden_state).abs().max().item()
            for model in models.values():
                for _ in range(3):
                    model(pixels)
            pairs = []
            for index in range(args.pairs):
                order = list(models) if index % 2 else list(models)[::-1]
                times = {name: seconds(models[name], pixels) for name in order}
                pairs.append((times["ours"], times["stock"]))
        medians = [statistics.median(column) * 1e3 for column in zip(*pairs)]
        ratios = sorted(stock_time / our_time for our_time, stock_time in pairs)
        quarter = len(ratios) // 4
        print(
            f"batch {args.batch}, {size} px: ours {medians[0]:.1f} ms, stock {medians[1]:.1f} ms, "
            f"stock/ours {statistics.median(ratios):.3f} (quartiles {ratios[quarter]:.3f} {ratios[-quarter - 1]:.3f}), "
            f"largest difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
