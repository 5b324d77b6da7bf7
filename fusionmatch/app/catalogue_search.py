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
"""One catalogue, searched with one of several models."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from ..evaluation.calibration import CALIBRATION_FILE, load_calibration
from ..loading import load_pretrained
from ..repository import fetch
from ..search import CatalogueIndex, Hit


def model_names(paths: Sequence[str]) -> dict[str, str]:
    """
    Short names for checkpoints and adapters: the last part of each path, numbered where it is the same for several.

    Args:
        paths (`Sequence[str]`): Folders or Hub names.

    Returns:
        `dict[str, str]`: name to path, in the same order.
    """
    names: dict[str, str] = {}
    for path in paths:
        short = name = path if not Path(path).exists() else Path(path).resolve().name
        number = 1
        while name in names:
            number += 1
            name = f"{short} ({number})"
        names[name] = path
    return names


class CatalogueSearch:
    """
    Searches a catalogue with the model of a name. A model is loaded, and the catalogue embedded with it, when it is
    asked for first.

    Args:
        models (`Mapping[str, str]`): Name to folder or Hub name ([`model_names`]).
        dataset (`datasets.Dataset`): The catalogue's rows.
        index_dir (`str` or `Path`, *optional*): Folder for the embedded catalogue, a sub-folder a model: used where it
            is there, else written.
        loading: Passed to [`~fusionmatch.loading.load_pretrained`].
    """

    def __init__(
        self, models: Mapping[str, str], dataset: datasets.Dataset, index_dir: str | Path | None = None, **loading: Any
    ) -> None:
        if not models:
            raise ValueError("There is nothing to search with: name at least one checkpoint or adapter.")
        self.models = dict(models)
        self.dataset = dataset
        self._index_dir = None if index_dir is None else Path(index_dir)
        self._loading = loading
        self._indexes: dict[str, CatalogueIndex] = {}
        self._lock = threading.Lock()

    def index(self, name: str) -> CatalogueIndex:
        """
        The catalogue as a model embeds it.

        Raises:
            `ValueError`: there is no model of that name.
        """
        if name not in self.models:
            raise ValueError(f"There is no model {name!r}; there are {', '.join(self.models)}.")
        # One at a time: two visitors must not embed the same catalogue side by side.
        with self._lock:
            if name not in self._indexes:
                self._indexes[name] = self._build(name)
            return self._indexes[name]

    def _build(self, name: str) -> CatalogueIndex:
        path = self.models[name]
        model, processor = load_pretrained(path, **self._loading)
        folder = None if self._index_dir is None else self._index_dir / name.replace("/", "--")
        if folder is not None and (folder / "index.json").is_file():
            index = CatalogueIndex.from_pretrained(folder, model, processor)
            if any(list(index.rows[name]) != list(self.dataset[name]) for name in ("image_id", "product", "texts")):
                raise ValueError(
                    f"The index {folder} is that of another catalogue. Remove it, or name another folder."
                )
        else:
            index = CatalogueIndex.build(model, processor, self.dataset)
            if folder is not None:
                index.save_pretrained(folder)
        index.calibration = load_calibration(fetch(path, [CALIBRATION_FILE]), model).get("t2i")
        return index

    def search(self, name: str, query: str | Image.Image, top_k: int = 12) -> list[Hit]:
        """Products that a model finds for a text or a picture, best first."""
        return self.index(name).search(query, top_k)

    def picture(self, row: int) -> Image.Image:
        """The picture of a row."""
        return self.dataset[row]["image"].convert("RGB")

    def precisions(self, name: str) -> list[str]:
        """Precisions that a model has a threshold for; none where it is not calibrated."""
        calibration = self.index(name).calibration
        return [] if calibration is None else list(calibration.thresholds)

    def carried(self, name: str, hits: Sequence[Hit], precision: str) -> bool | None:
        """Whether the first hit is sure enough for a precision; `None` where nothing is known of that."""
        calibration, sure = self.index(name).calibration, hits[0].probability
        if calibration is None or sure is None:
            return None
        threshold = calibration.threshold(float(precision))
        return threshold is not None and sure >= threshold
