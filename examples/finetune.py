"""Fine-tune a backbone as a classifier with `transformers.Trainer`, and save what stock transformers loads.

    python examples/finetune.py --model runs/quickstart/export --epochs 3

The model is an export of a run, or a DINOv2 model that transformers loads; default: the export of `make quickstart`.
Less than a minute on two CPU cores with it.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import dinov2_hf

CLOTHING = Path(__file__).parent / "data/clothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/export", help="export or name on the Hub")
    parser.add_argument("--data", default=str(CLOTHING), help="parquet files train and validation with image and label")
    parser.add_argument("--output", default="runs/finetune", help="folder of the classifier")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()

    sets = load_dataset("parquet", data_dir=args.data)
    names = sets["train"].features["label"].names
    processor = AutoImageProcessor.from_pretrained(args.model)  # mean, deviation and sizes of the run
    model = dinov2_hf.Dinov2ForImageClassification.from_pretrained(
        args.model, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )

    def collate(rows):
        images = [row["image"].convert("RGB") for row in rows]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    trainer = Trainer(
        model,
        TrainingArguments(
            args.output,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=64,
            learning_rate=5e-4,
            warmup_steps=0.1,
            lr_scheduler_type="cosine",
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        ),
        data_collator=collate,
        train_dataset=sets["train"],
        eval_dataset=sets["validation"],
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy on {len(sets['validation'])} photographs: {before:.1%} before, {after:.1%} after")

    trainer.save_model(args.output)
    processor.save_pretrained(args.output)
    stock = AutoModelForImageClassification.from_pretrained(args.output)
    print(f"{args.output}: {type(stock).__name__} with the classes {', '.join(stock.config.id2label.values())}")


if __name__ == "__main__":
    main()
