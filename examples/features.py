"""Extract frozen features of images, and use them: nearest neighbours, and k-NN accuracy by hand and by the evaluator.

    python examples/features.py --model facebook/dinov2-small

The model is a run, an export or any vision transformer that `AutoModel` loads; default: the run of `make quickstart`.
Ten seconds on two CPU cores with it.
"""

import argparse
from pathlib import Path

from datasets import load_dataset

from dinov2_hf import evaluate, extract_features, load_backbone

CLOTHING = Path(__file__).parent / "data/clothing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart", help="run, export, file or name on the Hub")
    parser.add_argument("--data", default=str(CLOTHING), help="parquet files train and validation with image and label")
    parser.add_argument("--cache", help="folder where features are kept for the next time")
    args = parser.parse_args()

    backbone = load_backbone(args.model)
    print(f"{backbone.name}: width {backbone.width}, stride {backbone.stride} pixels, on {backbone.device}")

    sets = load_dataset("parquet", data_dir=args.data)
    names = sets["train"].features["label"].names
    known = extract_features(backbone, sets["train"], cache=args.cache)
    asked = extract_features(backbone, sets["validation"], parts=("cls", "patches"), cache=args.cache)
    print(f"CLS {list(asked['cls'].shape)}, patches {list(asked['patches'].shape)}, {len(asked.broken)} broken images")

    # Cosines of every validation image with every training image
    reference, queries = (found["cls"] / found["cls"].norm(dim=1, keepdim=True) for found in (known, asked))
    cosines, nearest = (queries @ reference.T).topk(5)
    labels = [sets["train"][row]["label"] for row in range(len(sets["train"]))] if len(sets["train"]) < 100 else None
    labels = labels or sets["train"]["label"]
    for row in range(3):
        truth = names[sets["validation"][int(asked.index[row])]["label"]]
        found = [names[labels[int(known.index[index])]] for index in nearest[row]]
        print(f"a photograph of {truth}: its neighbours are {', '.join(found)} (cosine {cosines[row, 0]:.2f})")

    report = evaluate(backbone, "knn", sets, keys={"k": [20]})
    print(report.table())


if __name__ == "__main__":
    main()
