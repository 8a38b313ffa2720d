"""Pretrains a DINOv2 backbone on your images and leaves a folder that stock transformers loads.

    accelerate launch examples/pretrain.py --config configs/pretrain/quickstart.yaml data.train.path=/my/images

Everything after the options overrides a key of the config file: section.key=value.
"""

import argparse
import logging
import signal
from pathlib import Path

import numpy as np
import torch

from dinov2_hf.config import load_config
from dinov2_hf.evaluation import KnnEvaluator, plot_patch_pca
from dinov2_hf.features import EvalTransform
from dinov2_hf.hub import export_folder
from dinov2_hf.train import Pretrainer, build_accelerator, plot_metrics, read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML file; what it leaves out keeps its default")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: continue from the newest checkpoint in train.output_dir if there is one (default); "
        "never: refuse a folder that has one; or the path of a checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("dinov2_hf").setLevel(logging.INFO)

    def evaluate(features) -> dict[str, float]:
        return dict(evaluator(features, accelerator))

    try:
        config = load_config(args.config, args.overrides)
        accelerator = build_accelerator(config.train)
        colors = config.colors
        if config.knn.enabled:
            evaluator = KnnEvaluator(config.knn, colors.mean, colors.std, config.data.num_workers)
            transform = evaluator.transform
        else:
            evaluator = None
            size = config.crops.global_size
            transform = EvalTransform(size * 256 // 224, size, colors.mean, colors.std)
        trainer = Pretrainer(config, accelerator, evaluate if evaluator else None, resume=args.resume)
    except (ValueError, FileNotFoundError) as error:  # what a user can mend
        parser.error(str(error))

    try:
        teacher = trainer.run()
    except (OSError, FloatingPointError) as error:  # a full disk, a run that diverges
        raise SystemExit(f"{parser.prog}: error: {error}") from None
    if trainer.stopped:
        raise SystemExit(128 + signal.SIGTERM)  # as a shell reports it, so that a job script can tell it from the end
    if not accelerator.is_main_process:
        return

    output = Path(config.train.output_dir)
    backbone = teacher.pop("backbone").eval()
    results = [line["knn_accuracy"] for line in read_metrics(output) if "knn_accuracy" in line]
    facts = {"k-NN accuracy (classes of the evaluation set)": f"{results[-1]:.1f} %"} if results else {}
    exported = export_folder(output / "export", backbone, teacher, transform, config, facts)
    pictures = [plot_metrics(output)]
    if evaluator:
        queries = evaluator.queries
        chosen = np.linspace(0, len(queries) - 1, num=min(16, len(queries)), dtype=int)
        pixels = np.stack([transform.pixels(queries.read(int(index))[0]) for index in chosen])
        images = transform.normalize(torch.from_numpy(pixels)).to(backbone.device)
        titles = [str(queries.names[queries.labels[index]]) for index in chosen]
        pictures.append(plot_patch_pca(backbone, images, pixels, output / "features.png", titles))
        print(f"\nk-NN accuracy of the teacher: {results[0]:.1f} % at first, {results[-1]:.1f} % at the end")
    print(f"Curves and pictures:  {', '.join(map(str, pictures))}")
    print(f"Metrics:              {output / 'metrics.jsonl'} (TensorBoard: tensorboard --logdir {output})")
    print(f"Model:                {exported}\n\nLoad it with nothing but transformers:\n")
    print(f'    from transformers import AutoModel, pipeline\n    model = AutoModel.from_pretrained("{exported}")')
    print(f'    features = pipeline("image-feature-extraction", model="{exported}")')


if __name__ == "__main__":
    main()
