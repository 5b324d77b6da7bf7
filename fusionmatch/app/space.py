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
"""A folder that holds the page with its models and its catalogue, ready to be pushed as a Space."""

import io
import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .. import __version__
from ..hub.push import choose_files
from ..repository import ADAPTER_FILE, FINGERPRINT_FILE


_LONGEST_SIDE = 512
CATALOGUE_FILE = "catalogue.parquet"


def write_space(
    folder: str | Path, models: Mapping[str, str], dataset: datasets.Dataset, title: str, language: str = "en"
) -> Path:
    """
    Writes `app.py`, `requirements.txt`, `README.md`, the models that are folders here, and the catalogue: its texts,
    and its pictures with at most 512 pixels a side. Whoever can open the Space can see these.

    Args:
        folder (`str` or `Path`): Folder to write; it must not hold anything yet.
        models (`Mapping[str, str]`): Name to folder or Hub name.
        dataset (`datasets.Dataset`): The catalogue's rows.
        title (`str`): Heading of the page.
        language (`str`, *optional*, defaults to `"en"`): `en` or `ja`.

    Returns:
        `Path`: the folder.

    Raises:
        `FileExistsError`: the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"The folder {folder} is not empty. Name another one for the Space.")
    folder.mkdir(parents=True, exist_ok=True)
    copied: dict[Path, str] = {}
    paths = [_copy_model(path, name, folder, copied) for name, path in models.items()]
    rows = dataset.select_columns(["image", "texts", "product", "image_id"])
    rows = rows.map(_smaller, desc="Pictures for the Space").cast_column("image", datasets.Image())
    rows.to_parquet(folder / CATALOGUE_FILE)
    options = {
        "model_name_or_path": paths,
        "catalogue": CATALOGUE_FILE,
        "image_column": "image",
        "caption_column": ["texts"],
        "group_column": "product",
        "title": title,
        "language": language,
        "index_dir": "index",
        "host": "0.0.0.0",  # a Space is reached from outside of its container
    }
    (folder / "demo.json").write_text(json.dumps(options, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    for name in ("app.py", "README.md", "requirements.txt"):
        content = (resources.files(__package__) / "space" / name).read_text(encoding="utf-8")
        content = content.replace("{{ title }}", json.dumps(title, ensure_ascii=False))
        (folder / name).write_text(content.replace("{{ version }}", __version__), encoding="utf-8")
    return folder


def _copy_model(path: str, name: str, folder: Path, copied: dict[Path, str]) -> str:
    """
    Copies what a push would send of a model, once, and of an adapter the base as well; returns its path from the
    folder of the Space, where the page is started. A Hub name stays one.
    """
    source = Path(path).resolve()
    if not source.is_dir():
        return path
    if source in copied:
        return copied[source]
    files, _ = choose_files(source)
    while f"models/{name}" in copied.values():
        name += "-base"
    copied[source] = f"models/{name}"
    target = folder / copied[source]
    target.mkdir(parents=True)
    for file_name, file in files.items():
        shutil.copyfile(file, target / file_name)
    for file_name in (ADAPTER_FILE, FINGERPRINT_FILE):
        if file_name in files:
            content = json.loads(files[file_name].read_text(encoding="utf-8"))
            base = content["base_model_name_or_path"]
            content["base_model_name_or_path"] = _copy_model(base, Path(base).name, folder, copied)
            (target / file_name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return copied[source]


def _smaller(row: dict[str, Any]) -> dict[str, Any]:
    picture: Image.Image = row["image"].convert("RGB")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return {"image": {"bytes": buffer.getvalue(), "path": None}}
