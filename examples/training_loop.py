"""Pretrain with the loop in view: batches, loss, backward, optimiser, update of the teacher.

    python examples/training_loop.py --updates 60 train.batch_size=32

`dinov2_hf.pretrain` makes the same updates, and adds several processes, layer-wise learning rates, checkpoints, metrics
and exports. Words `key=value` override the recipe `quickstart`. Half a minute on two CPU cores.
"""

import argparse
from pathlib import Path

import torch

from dinov2_hf.config import load_config
from dinov2_hf.data import PhotometricAugmentation, TrainingBatches, build_loader, open_training_source
from dinov2_hf.objectives.diagnostics import rankme
from dinov2_hf.train import build_objective
from dinov2_hf.train.schedules import build_schedules, values_at

CLOTHING = Path(__file__).parent / "data/clothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=CLOTHING, help="folder or set of images (default: the bundled photographs)")
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("keys", nargs="*", metavar="key=value")
    args = parser.parse_args()

    keys = [f"data.train.path={args.data}", "train.epochs=1", f"train.epoch_length={args.updates}", *args.keys]
    config = load_config("quickstart", ["optim.warmup_epochs=0.1", *keys])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # Networks: a student that is trained, and a teacher, the moving average of it
    objective = build_objective(config).to(device).train()
    student, teacher = objective.networks[""]
    print({name: f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M" for name, network in student.items()})

    # Data: workers decode, crop and draw masks; colours are applied on the device
    source = open_training_source(config.data, config.train.seed)
    loader = build_loader(TrainingBatches(source, config, 0, args.updates), config.data.num_workers, pin_memory=False)
    augment = PhotometricAugmentation(config.colors)

    optimizer = torch.optim.AdamW(student.parameters())
    schedules = build_schedules(config, objective.schedules_of(config), config.train.batch_size)

    for step, batch in enumerate(loader):
        values = values_at(schedules, step)  # lr, weight_decay, teacher_temp, teacher_momentum of this update
        for group in optimizer.param_groups:
            group.update(lr=values.lr, weight_decay=values.weight_decay)

        batch = augment(batch.to(device))
        if step == 0:
            print(f"global crops {list(batch.global_crops.shape)}, masks {list(batch.masks.shape)}")
        output = objective(batch, values)  # the teacher's targets, the student's predictions, the terms
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), config.optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        objective.update_averages(values)  # teacher = momentum * teacher + (1 - momentum) * student

        if step % 10 == 0 or step + 1 == args.updates:
            terms = ", ".join(f"{name} {value:.3f}" for name, value in output.terms.items())
            print(f"update {step:3d}: loss {output.loss:.3f} ({terms}), lr {values.lr:.1e}")

    with torch.no_grad():
        (features,) = teacher["backbone"].features(batch.global_crops)
    print(f"effective rank of the teacher's features of the last batch: {rankme(features.cls):.1f}")


if __name__ == "__main__":
    main()
