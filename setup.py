"""Package definition; the versions that are tested together are pinned in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "src/dinov2_hf/__init__.py").read_text())[1]

EVALUATE = ["faiss-cpu>=1.12", "scikit-learn>=1.6", "scipy>=1.13"]
CURATE = ["datatrove>=0.6", "faiss-cpu>=1.12", "scikit-learn>=1.6", "scipy>=1.13"]
RAY = ["ray>=2.40"]
PAGE = ["nicegui>=3.0"]
COMPLETION = ["shtab>=1.7"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings-python>=2"]
ONNX = ["onnx>=1.20", "onnxruntime>=1.23", "onnxscript>=0.6"]
TYPES = ["mypy>=2.4", "pandas-stubs>=3.1", "types-PyYAML>=6.0.12", "types-tqdm>=4.70"]
EVERYTHING = [*EVALUATE, *CURATE, *RAY, *PAGE, *ONNX, *COMPLETION]

setup(
    name="dinov2_hf",
    version=version,
    description="Train, continue, distil and evaluate DINOv2 vision transformers in the Hugging Face ecosystem",
    long_description=(root / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # model_cards/ and configs/ lie at the top of the repository and are installed as parts of the package
    package_dir={"": "src", "dinov2_hf.model_cards": "model_cards", "dinov2_hf.configs": "configs"},
    packages=[*find_packages("src"), "dinov2_hf.model_cards", "dinov2_hf.configs"],
    package_data={
        "dinov2_hf": ["py.typed"],
        "dinov2_hf.model_cards": ["*.md"],
        "dinov2_hf.configs": ["*/*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17,<6",
        "accelerate>=1.15",
        "datasets>=5",
        "evaluate>=0.4.6",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "numpy>=1.26",
        "omegaconf>=2.3",
        "pillow>=11",
        "psutil>=5.9",
        "pyyaml>=6",
        "safetensors>=0.5",
        "simplejpeg>=1.8",
        "tensorboard>=2.17",
        "tifffile>=2024.8",
        "tqdm>=4.66",
    ],
    entry_points={"console_scripts": ["dinov2-hf = dinov2_hf.cli:main"]},
    extras_require={
        "xformers": ["xformers>=0.0.35"],
        "evaluate": EVALUATE,
        "curate": CURATE,
        "ray": RAY,
        "page": PAGE,
        "onnx": ONNX,
        "completion": COMPLETION,
        "docs": DOCS,
        "dev": [
            "parameterized>=0.9",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.12",
            "selenium>=4.20",
            *TYPES,
            *DOCS,
            *EVERYTHING,
        ],
    },
)
