# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
FusionMatch: image-text matching with attention fusion, for catalogues.

Importing the package registers its model with transformers' Auto classes. Only the model itself is imported then;
everything else (training, catalogue, evaluation, search) is imported when it is first used.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

import transformers
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_fusionmatch import FusionMatchConfig
from .modeling_fusionmatch import FusionMatchModel
from .modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval
from .processing_fusionmatch import FusionMatchProcessor


if TYPE_CHECKING:
    from .catalogue import load_catalogue
    from .evaluation.retrieval import evaluate_retrieval
    from .hub import push_folder
    from .search import CatalogueIndex
    from .starter import build_starter
    from .training import FusionMatchTrainer, FusionMatchTrainingArguments

__version__ = "0.1.0"

# Lowest and highest version that all tests pass with; `make matrix` runs them.
TESTED_TRANSFORMERS = ("5.23.0", "5.24.0")


def _check_transformers(found: str) -> None:
    """Warns where transformers is one that nobody has tried: its interfaces move with every minor version."""
    lowest, highest = (Version(version) for version in TESTED_TRANSFORMERS)
    if not lowest <= Version(found) or Version(found).release[:2] > highest.release[:2]:
        warnings.warn(
            f"FusionMatch {__version__} is tested with transformers {lowest} to {highest}, and {found} is installed. "
            f'If something misbehaves, install a tested one: pip install "transformers>={lowest},<={highest}".',
            stacklevel=3,
        )


_check_transformers(transformers.__version__)

AutoConfig.register(FusionMatchConfig.model_type, FusionMatchConfig, exist_ok=True)
AutoModel.register(FusionMatchConfig, FusionMatchModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(FusionMatchConfig, FusionMatchModel, exist_ok=True)
# The one with every head, as transformers has it: both losses that it can be trained with from the start.
AutoModelForPreTraining.register(FusionMatchConfig, FusionMatchForImageTextRetrieval, exist_ok=True)
AutoProcessor.register(FusionMatchConfig, FusionMatchProcessor, exist_ok=True)

_LAZY = {
    "CatalogueIndex": "search",
    "FusionMatchTrainer": "training",
    "FusionMatchTrainingArguments": "training",
    "build_starter": "starter",
    "evaluate_retrieval": "evaluation.retrieval",
    "load_catalogue": "catalogue",
    "push_folder": "hub",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "CatalogueIndex",
    "FusionMatchConfig",
    "FusionMatchForImageTextRetrieval",
    "FusionMatchModel",
    "FusionMatchProcessor",
    "FusionMatchTrainer",
    "FusionMatchTrainingArguments",
    "build_starter",
    "evaluate_retrieval",
    "load_catalogue",
    "push_folder",
]
