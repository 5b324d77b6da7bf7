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
"""A finished training run as its folder keeps it: what a report is made of, in no language."""

import base64
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from .. import __version__
from ..catalogue import Intake
from ..catalogue.columns import Columns
from ..catalogue.quarantine import QuarantinedRow
from ..evaluation.queries import Difference, QueryResults, compare
from ..evaluation.searches import Search, hits_and_misses, image_searches, text_searches
from ..training.pipeline import METRICS_FILE, QUERIES_BEFORE_FILE, QUERIES_FILE, FitResult


RECORD_FILE, QUARANTINE_FILE, FINDINGS_FILE = "report.json", "quarantine.jsonl", "findings.jsonl"
# Kinds of examples, in the order in which a report shows them.
EXAMPLES = ("hits", "misses", "pictures")
_LONGEST_TEXT = 280


@dataclass
class Shown:
    """A picture in a report: small, as a data URI, with the product and the catalogue's file and row it comes from."""

    image: str
    product: str
    file: str
    row: int


@dataclass
class Example:
    """
    A search of the test split with its pictures.

    Args:
        text (`str`, *optional*): The query, cut to 280 characters; `None` for a picture.
        before, after (`int`): Rank of the right product's first item, 1 is best.
        wanted ([`Shown`]): The right product; for a picture query the query itself.
        found (`list[Shown]`): What is found, best first, one picture a product.
        row (`int`, *optional*): The query's row of `queries.parquet`, and of `queries_before.parquet`, from 1; runs
            of old did not keep it.
    """

    text: str | None
    before: int
    after: int
    wanted: Shown
    found: list[Shown]
    row: int | None = None


@dataclass
class Record:
    """
    What `report.json` in a run's folder says: where it came from, and examples. It holds texts and small pictures of
    the catalogue.

    Args:
        what (`str`): `adapter` or `checkpoint`.
        catalogue (`str`): Its name.
        base (`str`): The base.
        version (`str`): Of FusionMatch.
        date (`str`): Day, as `2026-01-31`.
        machine (`str`): What it ran on.
        rows_read, rows_used (`int`): Rows of the catalogue, and those that gave at least one picture.
        pictures, products (`int`): What was used of it.
        columns_read ([`~fusionmatch.catalogue.columns.Columns`]): Which columns were read as what.
        seen_products (`int`): Products of the test that were trained on as well; 0 unless the user's own splits share
            some.
        untrained_base (`bool`): Whether the base was never trained on pairs.
        examples (`dict[str, list[Example]]`): `hits`, `misses` and `pictures`.
    """

    what: str
    catalogue: str
    base: str
    version: str
    date: str
    machine: str
    rows_read: int
    rows_used: int
    pictures: int
    products: int
    columns_read: Columns
    seen_products: int
    untrained_base: bool
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @classmethod
    def from_fit(cls, result: FitResult, splits: datasets.DatasetDict, intake: Intake, **facts: Any) -> "Record":
        """
        The record of a training that just ended.

        Args:
            result ([`~fusionmatch.training.pipeline.FitResult`]): What was measured.
            splits (`datasets.DatasetDict`): The splits it was trained and measured on.
            intake ([`~fusionmatch.catalogue.Intake`]): The catalogue that they are parts of.
            facts: `what`, `catalogue`, `base`, `machine` and `untrained_base`.
        """
        return cls(
            **facts,
            version=__version__,
            date=datetime.now(UTC).date().isoformat(),
            rows_read=intake.rows_read,
            rows_used=intake.rows_used,
            pictures=len(intake.dataset),
            products=len(set(intake.dataset["product"])),
            columns_read=intake.columns,
            seen_products=len(set(splits["test"]["product"]) & set(splits["train"]["product"])),
            examples=_examples(result, splits["test"], intake),
        )

    def save(self, folder: str | Path) -> Path:
        """Writes `report.json`."""
        path = Path(folder) / RECORD_FILE
        content = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1, default=sorted)
        path.write_text(content + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Record":
        """
        Reads `report.json`.

        Raises:
            `ValueError`: a version of FusionMatch wrote it that keeps other facts.
        """
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if set(content) != {each.name for each in dataclasses.fields(cls)}:
            raise ValueError(
                f"{path} keeps other facts than the reports of FusionMatch {__version__}: it was written by "
                f"{content.get('version', '?')}. Make the report with that version, or the run again with this one."
            )
        examples = {
            kind: [
                Example(
                    **{**each, "wanted": Shown(**each["wanted"]), "found": [Shown(**one) for one in each["found"]]}
                )
                for each in own
            ]
            for kind, own in content.pop("examples").items()
        }
        read = {
            name: tuple(cells) if isinstance(cells, list) else cells
            for name, cells in content.pop("columns_read").items()
        }
        columns = Columns(**read | {"guessed": frozenset(read["guessed"])})
        return cls(**content, columns_read=columns, examples=examples)


def _examples(result: FitResult, dataset: datasets.Dataset, intake: Intake) -> dict[str, list[Example]]:
    """Searches whose product comes first now and was furthest away before, and those that are furthest off still."""
    places = dict(
        zip(intake.dataset["image_id"], zip(intake.files, intake.dataset["source_row"], strict=True), strict=True)
    )
    ids, products = list(dataset["image_id"]), result.after_embeddings.image_products
    pictures = dataset.select_columns(["image"])

    def shown(row: int) -> Shown:
        file, number = places[ids[row]]
        return Shown(shown_picture(pictures[row]["image"]), str(products[row]), file, number)

    both = result.before_embeddings, result.after_embeddings
    texts, images = text_searches(*both), image_searches(*both)
    # As the files of the queries have them: pictures first.
    rows = {id(search): row for row, search in enumerate([*images, *texts], start=1)}

    def example(search: Search) -> Example:
        text = None if search.text is None else shortened(search.text)
        found = [shown(row) for row in search.found]
        return Example(text, search.rank_before, search.rank_after, shown(search.row), found, rows[id(search)])

    hits, misses = hits_and_misses(texts)
    near, far = hits_and_misses(images, count=2)
    return {
        kind: [example(search) for search in searches]
        for kind, searches in zip(EXAMPLES, (hits, misses, [*near, *far]), strict=True)
    }


def shortened(text: str) -> str:
    """A text, cut to 280 characters."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def shown_picture(image: Image.Image, size: int = 160) -> str:
    """A picture, made small, as a data URI."""
    image = image.convert("RGB")
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass
class Run:
    """
    A run's folder, read.

    Args:
        folder (`Path`): The folder.
        record ([`Record`]): Its `report.json`.
        metrics (`dict[str, Any]`): Its `metrics.json`.
        before, after ([`~fusionmatch.evaluation.queries.QueryResults`]): Its `queries_before.parquet` and
            `queries.parquet`.
        left_out, worth_a_look (`list[QuarantinedRow]`): Its `quarantine.jsonl` and `findings.jsonl`.
        differences (`dict[str, Difference]`): Change of each recall and of RSUM.
    """

    folder: Path
    record: Record
    metrics: dict[str, Any]
    before: QueryResults
    after: QueryResults
    left_out: list[QuarantinedRow]
    worth_a_look: list[QuarantinedRow]
    differences: dict[str, Difference]

    @property
    def name(self) -> str:
        """Its folder and the one around it, by which runs are told apart."""
        return "/".join(self.folder.resolve().parts[-2:])

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """
        Reads what `fusionmatch adapt` or `fusionmatch train` wrote.

        Raises:
            `FileNotFoundError`: the folder is none, or lacks one of the files.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder '{folder}' (looked from {Path.cwd()}).")
        missing = [
            name
            for name in (METRICS_FILE, RECORD_FILE, QUERIES_FILE, QUERIES_BEFORE_FILE)
            if not (folder / name).is_file()
        ]
        if missing:
            raise FileNotFoundError(
                f"'{folder}' is no whole training run: {', '.join(missing)} missing. A report is made of folders that "
                "`fusionmatch adapt` or `fusionmatch train` wrote to the end, on this machine."
            )
        before, after = (QueryResults.load(folder / name) for name in (QUERIES_BEFORE_FILE, QUERIES_FILE))
        return cls(
            folder,
            Record.load(folder / RECORD_FILE),
            json.loads((folder / METRICS_FILE).read_text(encoding="utf-8")),
            before,
            after,
            *(_read_rows(folder / name) for name in (QUARANTINE_FILE, FINDINGS_FILE)),
            compare([after], [before]),
        )


def _read_rows(path: Path) -> list[QuarantinedRow]:
    if not path.is_file():
        return []
    lines: Sequence[str] = path.read_text(encoding="utf-8").split("\n")
    return [QuarantinedRow(**json.loads(line)) for line in lines if line]
