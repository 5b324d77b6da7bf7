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
from ..repository import ADAPTER_FILE


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
    paths = []
    for name, path in models.items():
        if not Path(path).is_dir():
            paths.append(path)
            continue
        target = Path("models") / name
        _copy_model(Path(path), folder / target)
        paths.append(target.as_posix())
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


def _copy_model(source: Path, target: Path) -> None:
    """What a push would send of it; an adapter's base, where it is a folder, goes along."""
    files, _ = choose_files(source)
    target.mkdir(parents=True)
    for name, path in files.items():
        shutil.copyfile(path, target / name)
    config = target / ADAPTER_FILE
    if not config.is_file():
        return
    content = json.loads(config.read_text(encoding="utf-8"))
    base = Path(content["base_model_name_or_path"])
    if base.is_dir():
        own = target.parent / base.resolve().name
        if not own.exists():
            _copy_model(base, own)
        # From the folder of the Space, where the page is started.
        content["base_model_name_or_path"] = own.relative_to(target.parent.parent).as_posix()
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _smaller(row: dict[str, Any]) -> dict[str, Any]:
    picture: Image.Image = row["image"].convert("RGB")
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return {"image": {"bytes": buffer.getvalue(), "path": None}}
