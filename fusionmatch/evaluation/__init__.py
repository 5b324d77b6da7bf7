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
"""Is a model better at matching images and texts than before? Metrics, intervals and the report that answers it."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .concepts import evaluate_concepts
    from .ranking import rank_of_first_relevant, retrieval_metrics
    from .retrieval import evaluate_retrieval

_LAZY = {
    "evaluate_concepts": "concepts",
    "evaluate_retrieval": "retrieval",
    "rank_of_first_relevant": "ranking",
    "retrieval_metrics": "ranking",
}


def metric_path(name: str = "image_text_retrieval") -> Path:
    """
    Folder of an `evaluate` module that comes with the package, for `evaluate.load(str(metric_path()))`.

    Args:
        name (`str`, *optional*, defaults to `"image_text_retrieval"`):
            The metric's name.

    Returns:
        `Path`: the folder that holds `<name>.py` and the metric card.

    Raises:
        ValueError: there is no metric of that name.
    """
    metrics = Path(__file__).parent / "metrics"
    names = sorted(script.stem for script in metrics.glob("*/*.py") if script.stem == script.parent.name)
    if name not in names:
        raise ValueError(f"There is no metric named {name!r}. Metrics that come with FusionMatch: {', '.join(names)}.")
    return metrics / name


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = ["evaluate_concepts", "evaluate_retrieval", "metric_path", "rank_of_first_relevant", "retrieval_metrics"]
