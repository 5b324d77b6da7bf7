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
"""A catalogue's tables in, one row per picture and a quarantine out."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from .columns import Columns
from .downloads import download_pictures
from .quarantine import QuarantinedRow, check_quarantine_path, count_reasons, write_quarantine
from .rows import build_dataset, choose_catalogue_columns, collect_pictures
from .sources import CataloguePaths, read_sources
from .splits import SPLITS, check_split_products, check_split_sizes, split_products, warn_of_leaks
from .tables import column


logger = logging.getLogger(__name__)


@dataclass
class Intake:
    """
    What reading a catalogue gave.

    Args:
        dataset (`datasets.Dataset`): One row per picture, with the columns

            - `image` ([`datasets.Image`]): the picture, decoded when it is looked at;
            - `texts` (`list[str]`): its texts, at least one;
            - `product` (`str`): the product it shows; pictures of one product match each other's texts;
            - `image_id` (`str`): a stable, readable, unique id;
            - `source_row` (`int64`): the data row it comes from, counted from 1;
            - `picture_group` (`str`): what names the picture and its copies, saved again or not;

            and the source's other scalar columns. A name that would collide gets the suffix `_source`.
        quarantine (`list[QuarantinedRow]`): What could not be used, and why.
        notes (`list[QuarantinedRow]`): What is worth a look in pictures that are used all the same; [`examine`] finds
            more.
        columns (`Columns`): The columns chosen, and which were guessed.
        rows_read (`int`): Data rows the sources hold, the quarantined ones among them.
        rows_used (`int`): Those of them that gave a picture or a text.
        own_splits (`list[str]`, *optional*): The split of each row where the user or the owner named them.
        split_names (`list[str]`): The names of those splits, one that lost every row to the quarantine among them.
        files (`list[str]`): File (or hub dataset) of each row.
    """

    dataset: datasets.Dataset
    quarantine: list[QuarantinedRow]
    columns: Columns
    rows_read: int
    rows_used: int
    own_splits: list[str] | None = field(default=None, repr=False)
    split_names: list[str] = field(default_factory=list)
    notes: list[QuarantinedRow] = field(default_factory=list, repr=False)
    files: list[str] = field(default_factory=list, repr=False)

    def summary(self) -> str:
        """Says in a few lines what was read, by which columns, and what was quarantined for which reasons."""
        products, groups = (len(column(self.dataset, name).unique()) for name in ("product", "picture_group"))
        copies = len(self.dataset) - groups
        lines = [
            f"{self.rows_read:,} rows read: {len(self.dataset):,} pictures of {products:,} products kept, "
            f"{len(self.quarantine):,} quarantined.",
            *([f"Pictures that are copies of others: {copies:,}."] if copies else []),
            f"Columns: {self.columns}.",
            *(f"Quarantined {count:,}: {reason}." for reason, count in count_reasons(self.quarantine)),
        ]
        return "\n".join(lines)

    def split(self, validation_size: float = 0.1, test_size: float = 0.2, seed: int = 0) -> datasets.DatasetDict:
        """
        Divides the pictures by product, or keeps the splits that were given.

        The division follows from a hash of the seed and the product's name: it is the same on every machine, and a
        product stays where it is when the catalogue grows. Products that share a picture fall together.
        The shares are of products and met on average; a small catalogue strays from them.

        Args:
            validation_size (`float`, *optional*, defaults to 0.1): Share of the products in [0, 1); 0 for none.
            test_size (`float`, *optional*, defaults to 0.2): Share of the products in [0, 1); 0 for none.
            seed (`int`, *optional*, defaults to 0): Another seed gives another division.

        Returns:
            `datasets.DatasetDict`: `train`, and `validation` and `test` where they were asked for or given.

        Raises:
            `ValueError`: The sizes are out of range, or a split would hold fewer than two products.
        """
        check_split_sizes(validation_size, test_size)
        products, groups = self.dataset["product"][:], self.dataset["picture_group"][:]
        if self.own_splits is not None:
            splits = self.own_splits
            wanted = [name for name in SPLITS if name in self.split_names]
            wanted += [name for name in self.split_names if name not in SPLITS]
            warn_of_leaks(splits, products, groups)
            remedy = "The splits are kept as they were given: add products to this one or leave it out."
        else:
            splits = split_products(products, groups, validation_size, test_size, seed)
            sizes = {"train": 1.0, "validation": validation_size, "test": test_size}
            wanted = [name for name in SPLITS if sizes[name] > 0]
            remedy = "Raise its size, set it to 0 to do without, try another seed, or add products."
        check_split_products(splits, products, wanted, remedy)
        rows: dict[str, list[int]] = {name: [] for name in wanted}
        for row, name in enumerate(splits):
            rows[name].append(row)
        return datasets.DatasetDict({name: self.dataset.select(rows[name]) for name in wanted})

    def write_quarantine(self, path: str | os.PathLike) -> Path:
        """Writes the quarantine to a `.jsonl` or `.csv` file, whole or not at all, and returns its path."""
        return write_quarantine(self.quarantine, path)


def read_catalogue(
    path: CataloguePaths,
    *,
    image_column: str | None = None,
    additional_images_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    image_root: str | os.PathLike | None = None,
    max_samples: int | None = None,
    separator: str | None = None,
    download_images: bool = False,
    image_cache_dir: str | os.PathLike | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Intake:
    """
    Reads a catalogue, checks every picture and every text, and keeps one row per picture.

    The arguments are those of [`load_catalogue`].

    Returns:
        [`Intake`]: The pictures kept, the quarantine and the columns chosen.

    Raises:
        `FileNotFoundError`: Nothing lies at the path, or the hub dataset cannot be reached.
        `ValueError`: A table cannot be read, a column does not exist, or no row can be used.
    """
    sources = read_sources(path, max_samples)
    columns = choose_catalogue_columns(
        sources,
        image_column=image_column,
        additional_images_column=additional_images_column,
        caption_column=caption_column,
        group_column=group_column,
        split_column=split_column,
    )
    root = Path(image_root).expanduser().resolve() if image_root is not None else None
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"image_root '{image_root}' is not a folder.")
    download = None
    if download_images:
        download = partial(download_pictures, cache_dir=image_cache_dir, allowed_hosts=allowed_hosts)
    pictures, quarantine, notes, split_names = collect_pictures(sources, columns, root, separator, download)
    quarantine = [fault for source in sources for fault in source.faults] + quarantine
    if not len(pictures):
        reasons = "; ".join(f"{count:,} times: {reason}" for reason, count in count_reasons(quarantine)[:3])
        raise ValueError(
            f"No row of the catalogue can be used: {len(quarantine):,} quarantined ({reasons or 'it holds no rows'}). "
            f"It was read by {columns}."
        )
    unreadable = sum(len(source.faults) for source in sources)
    intake = Intake(
        dataset=build_dataset(sources, columns, pictures),
        quarantine=quarantine,
        columns=columns,
        rows_read=sum(len(source.places) for source in sources) + unreadable,
        rows_used=len(np.unique(pictures.text_rows)),
        own_splits=[str(split) for split in pictures.splits] if split_names else None,
        split_names=split_names,
        notes=notes,
        files=[
            sources[source].places[row][0]
            for source, row in zip(pictures.source.tolist(), pictures.row.tolist(), strict=True)
        ],
    )
    logger.info(intake.summary())
    return intake


def load_catalogue(
    path: CataloguePaths,
    *,
    image_column: str | None = None,
    additional_images_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.2,
    seed: int = 0,
    image_root: str | os.PathLike | None = None,
    quarantine_file: str | os.PathLike | None = None,
    max_samples: int | None = None,
    separator: str | None = None,
    download_images: bool = False,
    image_cache_dir: str | os.PathLike | None = None,
    allowed_hosts: Sequence[str] = (),
) -> datasets.DatasetDict:
    r"""
    Loads a company's catalogue as one clean [`datasets.DatasetDict`], one row per picture.

    Every picture is decoded and every text looked at. What cannot be used is quarantined with its reason; the run goes
    on with the rest. Splits are never guessed from a file's name. See [`Intake`] for the columns of the result.

    Columns that are not named are guessed from usual names. Without `caption_column` the text is a column that holds a
    list of texts, else a column called caption or text, else *title + description* where both exist: each stripped,
    given a full stop where it ends without sentence punctuation, and joined by one space. Without `group_column` the
    product is a column such as `item_group_id`, `product_id` or `product` (unless all rows have the same value), else
    the picture's id column, else the first picture of the row; so is that of a row whose product is left empty.

    Args:
        path (`str`, `os.PathLike`, `list` or `Mapping`):
            A `.csv`, `.tsv`, `.xlsx`, `.jsonl`, `.json` or `.parquet` file; a folder of pictures with a
            `metadata.jsonl`, `metadata.csv` or `metadata.parquet`; a folder of Parquet shards, read as one table; a
            glob; a mapping of `train`, `validation` and `test` to any of these or to lists of them, whose splits are
            kept as they are; or the name of a hub dataset, whose splits are kept when it has several.
        image_column (`str`, *optional*):
            Column of the pictures: paths relative to the table's folder, embedded bytes, or lists of either.
        additional_images_column (`str`, *optional*):
            Column of further pictures of the same row, joined by `separator` or as a list.
        caption_column (`str` or `list[str]`, *optional*):
            Column of the text, or several to be joined in this order. A column of lists gives several texts.
        group_column (`str`, *optional*):
            Column of the product. Its pictures and texts all match each other and stay in one split.
        split_column (`str`, *optional*):
            Column of the split: `train`, `validation` (`val`, `valid`, `dev`) or `test` (`eval`).
        validation_size (`float`, *optional*, defaults to 0.1):
            Share of the products in [0, 1) for validation; 0 for no such split.
        test_size (`float`, *optional*, defaults to 0.2):
            Share of the products in [0, 1) for the test; 0 for no such split.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives another division.
        image_root (`str` or `os.PathLike`, *optional*):
            Folder the pictures may lie in besides the table's own; paths are looked up here first.
        quarantine_file (`str` or `os.PathLike`, *optional*):
            Where to write what was quarantined, as `.jsonl` or `.csv`.
        max_samples (`int`, *optional*):
            Read only this many rows, the first ones, of each split given or of the whole.
        separator (`str`, *optional*):
            What joins several pictures in one cell; guessed among `|`, line break, `;` and `,`.
        download_images (`bool`, *optional*, defaults to `False`):
            Whether to download pictures that are named by URL
            ([`~fusionmatch.catalogue.downloads.download_pictures`]); without, they are quarantined.
        image_cache_dir (`str` or `os.PathLike`, *optional*):
            Folder that keeps what was downloaded; the dataset reads the pictures from there, and what lies there is
            not downloaded again. Defaults to `fusionmatch_images` in the cache of `datasets`.
        allowed_hosts (`Sequence[str]`, *optional*):
            Hosts to download from though their address is private or their port is neither 80 nor 443.

    Returns:
        `datasets.DatasetDict`: The splits.

    Raises:
        `FileNotFoundError`: Nothing lies at the path, or the hub dataset cannot be reached.
        `ValueError`: A table cannot be read, a column does not exist, no row can be used, a size is out of range, or a
            split would hold fewer than two products.

    Example:

    ```python
    >>> from fusionmatch.catalogue import load_catalogue

    >>> catalogue = load_catalogue("shop/products.csv", quarantine_file="quarantine.csv")
    ```
    """
    check_split_sizes(validation_size, test_size)
    if quarantine_file is not None:
        check_quarantine_path(quarantine_file)
    intake = read_catalogue(
        path,
        image_column=image_column,
        additional_images_column=additional_images_column,
        caption_column=caption_column,
        group_column=group_column,
        split_column=split_column,
        image_root=image_root,
        max_samples=max_samples,
        separator=separator,
        download_images=download_images,
        image_cache_dir=image_cache_dir,
        allowed_hosts=allowed_hosts,
    )
    if quarantine_file is not None:
        intake.write_quarantine(quarantine_file)
    if intake.quarantine:
        faults = ", ".join(f"{count:,} {reason}" for reason, count in count_reasons(intake.quarantine))
        place = f"see '{quarantine_file}'" if quarantine_file is not None else "pass quarantine_file to see which"
        logger.warning(f"{len(intake.quarantine):,} entries of the catalogue were quarantined ({faults}); {place}.")
    splits = intake.split(validation_size, test_size, seed)
    counts = ", ".join(
        f"{name} {len(rows):,} pictures of {len(Counter(rows['product'])):,} products" for name, rows in splits.items()
    )
    logger.info(f"Splits: {counts}.")
    return splits
