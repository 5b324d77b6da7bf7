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
"""What a person should look at in a catalogue that can be used: copies, shared texts, leaks, texts that are cut."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from .duplicates import text_key
from .intake import Intake
from .languages import languages_of
from .quarantine import QuarantinedRow
from .tables import chunks, codes_of, column, count_by_appearance, in_chunks, take


COPY = "picture is a copy of another one of the same product"
SHARED_PICTURE = "picture is shown by several products"
SHARED_TEXT = "text is used by several products"
REPEATED_ID = "id is used by several rows"
LEAKING_PRODUCT = "product stands in more than one split"
LEAKING_PICTURE = "picture stands in more than one split"
LONG_TEXT = "text is longer than the model reads"
OTHER_LANGUAGE = "text is in another language than most"

# What names a sellable thing, and so stands in one row.
_IDS = {
    "sku",
    "sku_id",
    "variant_id",
    "item_id",
    "id",
    "asin",
    "gtin",
    "ean",
    "jan",
    "janコード",
    "barcode",
    "品番",
    "型番",
}
# Share of the texts in one language from which on others are odd; below, the catalogue has several.
_MOST = 0.9


def examine(
    intake: Intake, count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None, max_tokens: int | None = None
) -> list[QuarantinedRow]:
    """
    Finds what is worth a look among the rows that are kept. Nothing is changed: training and evaluation cope with all
    of it, but figures and searches are better where it is mended.

    Args:
        intake ([`Intake`]): A catalogue.
        count_tokens (`Callable`, *optional*): Lengths of texts in tokens; without it no text counts as too long.
        max_tokens (`int`, *optional*): Tokens that the model reads.

    Returns:
        `list[QuarantinedRow]`: in the order of the rows; those of [`Intake.notes`] among them.
    """
    rows = _Rows(intake)
    limits = [] if count_tokens is None or max_tokens is None else [(count_tokens, max_tokens)]
    kinds = [rows.copies(), rows.shared_texts(), rows.repeated_ids(), rows.leaks(), rows.other_languages()]
    kinds += [rows.long_texts(*limit) for limit in limits]
    found = list(intake.notes)
    for some in in_chunks(chain.from_iterable(kinds)):
        found += rows.notes(some)
    return sorted(found, key=lambda each: (each.source, each.row))


# Row, reason, field, value and detail; without a value it is the row's id.
_Note = tuple[int, str, str, str | None, str]


class _Texts:
    """Some texts of a column, read by the chunk: all of them at once may not fit into memory."""

    def __init__(self, texts: pa.ChunkedArray, places: np.ndarray) -> None:
        self.texts, self.places = texts, places

    def __iter__(self) -> Iterator[str]:
        for some in in_chunks(self.places.tolist()):
            yield from take(self.texts, np.array(some)).to_pylist()


class _Rows:
    """
    The rows of a catalogue as numbers: a product, a picture or a text is told from others by its code, and the strings
    are looked up where there is something to say about them.
    """

    def __init__(self, intake: Intake) -> None:
        dataset = intake.dataset
        self.intake = intake
        self.ids = column(dataset, "image_id")
        self.source_rows = column(dataset, "source_row").to_numpy()
        self.products, self.product_names = codes_of(column(dataset, "product"))
        self.pictures, _ = codes_of(column(dataset, "picture_group"))
        texts = column(dataset, "texts")
        self.texts = pa.chunked_array([part.flatten() for part in texts.chunks], pa.string())
        lengths = [pc.list_value_length(part).to_numpy() for part in texts.chunks]
        self.row_of_text = np.repeat(np.arange(len(dataset)), np.concatenate(lengths))
        self.label = " + ".join(intake.columns.texts)

    def notes(self, found: Sequence[_Note]) -> Iterator[QuarantinedRow]:
        """What was found, in words for a person."""
        ids = take(self.ids, np.array([row for row, *_ in found])).to_pylist()
        for (row, reason, name, value, detail), own in zip(found, ids, strict=True):
            place = self.intake.files[row], int(self.source_rows[row])
            yield QuarantinedRow(*place, reason, field=name, value=own if value is None else value, detail=detail)

    def copies(self) -> Iterator[_Note]:
        """Pictures that are copies of others."""
        image = self.intake.columns.image
        for rows in _repeated(self.pictures):
            products = list(dict.fromkeys(self.products[rows].tolist()))
            first = self.ids[int(rows[0])].as_py()
            for row in rows[1:].tolist():
                others = self._others(self.products[row], products)
                if others:
                    yield row, SHARED_PICTURE, image, None, f"also {others}"
                else:
                    yield row, COPY, image, None, f"of {first}"

    def shared_texts(self) -> Iterator[_Note]:
        """Texts that several products use, once for each product."""
        keys = self._text_codes(text_key)
        products = self.products[self.row_of_text]
        told = _first_of_each(keys, products)
        own_products: dict[int, list[int]] = defaultdict(list)
        for text in told[np.bincount(keys[told])[keys[told]] > 1].tolist():
            own_products[int(keys[text])].append(text)
        for text in sorted(text for texts in own_products.values() for text in texts):
            names = products[own_products[int(keys[text])]].tolist()
            others = self._others(products[text], names)
            yield int(self.row_of_text[text]), SHARED_TEXT, self.label, self.texts[text].as_py(), f"also {others}"

    def repeated_ids(self) -> Iterator[_Note]:
        """Ids that stand in several rows of the tables."""
        dataset = self.intake.dataset
        files: dict[str, int] = {}
        file = np.array([files.setdefault(own, len(files)) for own in self.intake.files])
        place = count_by_appearance(file, self.source_rows)
        for name in (name for name in dataset.column_names if name.strip().lower() in _IDS):
            ids, different = codes_of(column(dataset, name))
            told = _first_of_each(ids, place)
            told = told[ids[told] >= 0]
            for own in _repeated(ids[told]):
                rows = told[own].tolist()
                value = str(different[int(ids[rows[0]])].as_py())
                for row in rows[1:]:
                    yield row, REPEATED_ID, name, value, f"also row {self.source_rows[rows[0]]}"

    def leaks(self) -> Iterator[_Note]:
        """Products and pictures that stand in several splits, once for each: by picture, all may be in all."""
        if self.intake.own_splits is None:
            return
        names: dict[str, int] = {}
        splits = np.array([names.setdefault(own, len(names)) for own in self.intake.own_splits])
        for reason, codes in ((LEAKING_PRODUCT, self.products), (LEAKING_PICTURE, self.pictures)):
            told = _first_of_each(codes, splits)
            homes: dict[int, set[str]] = defaultdict(set)
            for row in told.tolist():
                homes[int(codes[row])].add(self.intake.own_splits[row])
            for row in told.tolist():
                own = homes[int(codes[row])]
                if len(own) > 1:
                    value = self.product_names[int(codes[row])].as_py() if reason == LEAKING_PRODUCT else None
                    yield row, reason, "split", value, ", ".join(sorted(own))

    def long_texts(self, count_tokens: Callable[[Sequence[str]], Sequence[int]], most: int) -> Iterator[_Note]:
        """Texts that the model does not read whole, each once."""
        for different in in_chunks(_first_of_each(self._text_codes(str)).tolist()):
            texts = take(self.texts, np.array(different)).to_pylist()
            for at, text, length in zip(different, texts, count_tokens(texts), strict=True):
                if length > most:
                    detail = f"{length} tokens, {most} are read"
                    yield int(self.row_of_text[at]), LONG_TEXT, self.label, text, detail

    def other_languages(self) -> Iterator[_Note]:
        """Texts that are surely in another language than nearly all are, each once."""
        different = _first_of_each(self._text_codes(str))
        codes, sure = languages_of(_Texts(self.texts, different))
        told = [(at, code) for at, code, known in zip(different.tolist(), codes, sure.tolist(), strict=True) if known]
        ((main, count),) = Counter(code for _, code in told).most_common(1) or [("", 0)]
        if count >= _MOST * len(told):
            for at, code in told:
                if code != main:
                    text = self.texts[at].as_py()
                    yield int(self.row_of_text[at]), OTHER_LANGUAGE, self.label, text, f"{code}, most are {main}"

    def _text_codes(self, key: Callable[[str], str]) -> np.ndarray:
        # By a digest, since the keys themselves are as long as the texts.
        digests = (
            np.array([xxhash.xxh3_64_intdigest(key(text).encode()) for (text,) in chunk], np.uint64)
            for chunk in chunks(pa.table({"text": self.texts}), ["text"])
        )
        return pd.factorize(np.concatenate([np.empty(0, np.uint64), *digests]))[0]

    def _others(self, own: int, products: Sequence[int], shown: int = 2) -> str:
        """The first other ones of those, own among them, and the number of the rest, in words; nothing without."""
        first = [one for one in products[: shown + 1] if one != own][:shown]
        rest = len(products) - 1 - len(first)
        names = ", ".join(self.product_names[one].as_py() for one in first)
        return names + (f" and {rest} more" if rest else "")


def _first_of_each(*columns: np.ndarray) -> np.ndarray:
    """The first row of each combination of some columns, ascending."""
    return np.flatnonzero(~pd.Series(count_by_appearance(*columns)).duplicated().to_numpy())


def _repeated(codes: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each code that stands in several, in the order in which the codes are counted."""
    order = np.argsort(codes, kind="stable")
    ends = np.flatnonzero(np.diff(codes[order], append=-2)) + 1
    for begin, end in zip([0, *ends.tolist()], ends.tolist(), strict=False):
        if end - begin > 1:
            yield order[begin:end]


def languages(intake: Intake, most: int = 10_000) -> list[tuple[str, float]]:
    """ISO 639 codes of the texts' languages with their shares, the commonest first; of many texts those drawn."""
    texts = column(intake.dataset, "texts")
    flat = pa.chunked_array([part.flatten() for part in texts.chunks], pa.string())
    # Drawn, not evenly spaced: texts of two languages often take turns.
    rows = np.sort(np.random.default_rng(0).choice(len(flat), min(most, len(flat)), replace=False))
    counts = Counter(languages_of(_Texts(flat, rows))[0])
    return [(name, count / counts.total()) for name, count in counts.most_common()]
