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
"""Few labels: pictures and texts of which nobody has said yet which belong together."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import xxhash
from PIL import Image

from .duplicates import group_pictures, text_key
from .pictures import Checked, check_files, check_stored


logger = logging.getLogger(__name__)

TEXT_FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "products": datasets.List(datasets.Value("string"))}
)


def hide_pairs(dataset: datasets.Dataset, labels: int, seed: int = 0) -> tuple[datasets.Dataset, datasets.Dataset]:
    """
    Keeps the texts of a few pictures and takes all others apart, as if nobody had matched them yet.

    A smaller number keeps some of the pictures that a larger one keeps, so that curves over it are of nested sets.

    Args:
        dataset (`datasets.Dataset`): Rows of [`load_catalogue`].
        labels (`int`): Pictures that keep their texts.
        seed (`int`, *optional*, defaults to 0): Another seed keeps others.

    Returns:
        `(datasets.Dataset, datasets.Dataset)`: the rows in their order, with empty `texts` where they were taken off;
        and these texts, each once, in an order that says nothing: `text` (`str`), and `products` (`list[str]`), which
        is for measuring only.

    Raises:
        `ValueError`: fewer than two labels, more than there are pictures, or all of one product.
    """
    if not 2 <= labels <= len(dataset):
        raise ValueError(f"`labels` must lie between 2 and the {len(dataset):,} training pictures, got {labels}.")
    order = np.random.default_rng(seed).permutation(len(dataset))
    kept = set(order[:labels].tolist())
    products, texts = dataset["product"][:], dataset["texts"][:]
    if len({products[row] for row in kept}) < 2:
        raise ValueError(f"The {labels} pictures that keep their texts are of one product; raise `labels`.")
    taken: dict[str, str] = {}
    owners: dict[str, list[str]] = {}
    for row in order[labels:].tolist():
        for text in texts[row]:
            key = text_key(text)
            taken.setdefault(key, text)
            owners.setdefault(key, []).append(products[row])
    column = [own if row in kept else [] for row, own in enumerate(texts)]
    apart = dataset.remove_columns("texts").add_column("texts", column, feature=dataset.features["texts"])
    keys = np.random.default_rng(seed).permutation(sorted(taken)).tolist()
    found = {"text": [taken[key] for key in keys], "products": [sorted(set(owners[key])) for key in keys]}
    return apart, datasets.Dataset.from_dict(found, features=TEXT_FEATURES)


def add_unpaired_images(
    dataset: datasets.Dataset, folder: str | Path, held_out: Sequence[datasets.Dataset] = ()
) -> datasets.Dataset:
    """
    Adds the pictures of a folder (and of its folders) as rows without texts. Copies of a picture of the catalogue,
    saved again or not, get its `picture_group`.

    Args:
        dataset (`datasets.Dataset`): Rows of [`load_catalogue`] that are trained on.
        folder (`str` or `Path`): What is no picture by its extension is left out; what cannot be decoded as well, with
            a warning.
        held_out (`Sequence[datasets.Dataset]`, *optional*): The other splits. Copies of their pictures are left out,
            with a warning.

    Raises:
        `FileNotFoundError`: there is no such folder.
        `ValueError`: it holds no picture that can be used.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of unpaired pictures at '{folder}' (looked from {Path.cwd()}).")
    known = Image.registered_extensions()
    paths = sorted(path.resolve() for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in known)
    checked = dict(zip(paths, check_files(paths), strict=True))
    bad = [path for path in paths if checked[path].reason is not None]
    if bad:
        reasons = "; ".join(f"{path.name}: {checked[path].reason}" for path in bad[:3])
        logger.warning(f"{len(bad):,} of {len(paths):,} unpaired pictures cannot be used ({reasons}).")
    # A copy within the folder would be a second answer to the same text.
    different = {checked[path].digest: path for path in paths if checked[path].reason is None}.values()
    good = _without_copies(dataset, held_out, {path: checked[path] for path in different}) if different else {}
    if not good:
        raise ValueError(f"The folder '{folder}' holds no picture that can be used ({len(paths):,} were looked at).")
    rows = {
        "image": [str(path) for path in good],
        "texts": [[] for _ in good],
        "product": [f"unpaired {path}" for path in good],
        "image_id": [str(path) for path in good],
        "picture_group": list(good.values()),
    }
    shared = [name for name in rows if name in dataset.column_names]
    features = datasets.Features({name: dataset.features[name] for name in shared})
    added = datasets.Dataset.from_dict({name: rows[name] for name in shared}, features=features)
    return datasets.concatenate_datasets([dataset, added])


def _without_copies(
    dataset: datasets.Dataset, held_out: Sequence[datasets.Dataset], found: dict[Path, Checked]
) -> dict[Path, str]:
    """The pictures of a folder that no held-out split has, and what names each and its copies."""
    splits = [dataset, *held_out]
    stored = [split.select_columns(["image"]) for split in splits]
    known = [checked.hash for checked in chain(*(check_stored(split, follow_paths=True) for split in stored))]
    hashes = known + [checked.hash for checked in found.values()]
    groups = group_pictures(hashes)
    tested = set(groups[len(dataset) : len(known)])
    named = "picture_group" in dataset.column_names
    names = dict(zip(groups[: len(dataset)], dataset["picture_group"], strict=True)) if named else {}
    kept = {
        path: names.get(group) or xxhash.xxh3_64_hexdigest(hashes[group])
        for path, group in zip(found, groups[len(known) :], strict=True)
        if group not in tested
    }
    if len(kept) < len(found):
        logger.warning(
            f"{len(found) - len(kept):,} unpaired pictures are copies of pictures that are held out for validation "
            "and test; they are left out."
        )
    return kept


def read_unpaired_texts(path: str | Path, held_out: Sequence[datasets.Dataset] = ()) -> datasets.Dataset:
    """
    Reads a text file, one text a line, each once; the same columns as those of [`hide_pairs`].

    Args:
        path (`str` or `Path`): The file, in UTF-8.
        held_out (`Sequence[datasets.Dataset]`, *optional*): The splits that are not trained on. Their texts are left
            out, with a warning.

    Raises:
        `FileNotFoundError`: there is no such file.
        `ValueError`: it holds no text, or is not UTF-8.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of unpaired texts at '{path}' (looked from {Path.cwd()}).")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8. Save it as plain text in UTF-8, one text a line.") from error
    found = {text_key(line): line.strip() for line in lines if line.strip()}
    tested = {text_key(text) for split in held_out for text in chain.from_iterable(split["texts"])}
    texts = [text for key, text in found.items() if key not in tested]
    if len(texts) < len(found):
        logger.warning(
            f"{len(found) - len(texts):,} unpaired texts are held out for validation and test; they are left out."
        )
    if not texts:
        raise ValueError(f"'{path}' holds no text that can be used; it needs one a line.")
    return datasets.Dataset.from_dict({"text": texts, "products": [[] for _ in texts]}, features=TEXT_FEATURES)
