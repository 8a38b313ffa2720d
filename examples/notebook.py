"""Train, look and compare, cell by cell: open this file as a notebook in VS Code, PyCharm, Spyder or with jupytext.

    python examples/notebook.py

runs all cells in a minute on two CPU cores. With a GPU and images of your own change the first cell only.
"""

# %% Settings
import os
from pathlib import Path

from dinov2_hf import evaluate, extract_features, open_run, pretrain

DATA = os.environ.get("DATA", str(Path(__file__).parent / "data/clothing"))
OUTPUT = os.environ.get("OUTPUT", "runs/notebook")
KEYS = os.environ.get("KEYS", "train.epochs=0.5 optim.warmup_epochs=0.1 train.log_every=4 knn.epochs=1").split()

# %% Train: a progress bar, and a folder with everything the run left. Running the cell again continues it
run = pretrain(DATA, OUTPUT, config="quickstart", keys=KEYS)
run  # noqa: B018 - shown by the notebook

# %% Metrics: a table of pandas, one row for each logged update
metrics = run.metrics()
print(metrics[["loss", "loss/dino_global", "loss/ibot", "rankme"]].dropna().round(3))

# %% Curves
try:
    from IPython.display import Image, display
except ImportError:
    print("curves:", run.plot())
else:
    display(Image(run.plot()))

# %% Features of the trained backbone
found = extract_features(run.backbone(), DATA, parts=("cls", "patches"))
print({part: list(found[part].shape) for part in found.parts})

# %% The two photographs that are most alike
cls = found["cls"] / found["cls"].norm(dim=1, keepdim=True)
cosines = (cls[:500] @ cls[:500].T).fill_diagonal_(-1)
first, second = divmod(int(cosines.argmax()), len(cosines))
print(f"{found.names[first]} and {found.names[second]}: cosine {cosines.max():.3f}")

# %% Evaluate: k-NN accuracy with a confidence interval
report = evaluate(run.export(), "knn", DATA, keys={"k": [20]})
print(report.table())

# %% Later, or in another notebook
again = open_run(OUTPUT)
print(again, "exports:", {name or "model": str(path) for name, path in again.exports.items()})
