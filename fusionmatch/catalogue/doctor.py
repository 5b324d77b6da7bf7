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

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from .duplicates import text_key
from .intake import Intake
from .quarantine import QuarantinedRow


COPY = "picture is a copy of another one of the same product"
SHARED_PICTURE = "picture is shown by several products"
SHARED_TEXT = "text is used by several products"
REPEATED_ID = "id is used by several rows"
LEAKING_PRODUCT = "product stands in more than one split"
LEAKING_PICTURE = "picture stands in more than one split"
LONG_TEXT = "text is longer than the model reads"

# What names a sellable thing, and so stands in one row.
_IDS = {"sku", "variant_id", "item_id", "id", "asin", "gtin", "ean", "jan", "barcode", "品番", "型番"}
_KANA = ("HIRAGANA", "KATAKANA")
_SCRIPTS = {"CJK": "Chinese characters", **dict.fromkeys(_KANA, "Japanese")}


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
    dataset = intake.dataset
    # A column as a whole: row by row would take a hundred times as long.
    products, ids, texts, picture_groups = (
        dataset[name][:] for name in ("product", "image_id", "texts", "picture_group")
    )
    places = list(zip(intake.files, dataset["source_row"][:], strict=True))
    found = list(intake.notes)

    def note(row: int, reason: str, field: str, value: str, detail: str | None = None) -> None:
        found.append(QuarantinedRow(*places[row], reason, field=field, value=value, detail=detail))

    groups: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(picture_groups):
        groups[group].append(row)
    for rows in groups.values():
        names = list(dict.fromkeys(products[row] for row in rows))
        for row in rows[1:]:
            others = _others(products[row], names)
            if others:
                note(row, SHARED_PICTURE, intake.columns.image, ids[row], f"also {others}")
            else:
                note(row, COPY, intake.columns.image, ids[row], f"of {ids[rows[0]]}")

    label = " + ".join(intake.columns.texts)
    owner: dict[str, str] = {}
    shared: dict[str, dict[str, None]] = {}
    for row, own in enumerate(texts):
        for text in own:
            key = text_key(text)
            first = owner.setdefault(key, products[row])
            if first != products[row]:
                shared.setdefault(key, {first: None})[products[row]] = None
    names_of = {key: list(own) for key, own in shared.items()}
    told: set[tuple[str, str]] = set()
    for row, own in enumerate(texts if shared else ()):
        for text in own:
            key = text_key(text)
            if key in names_of and (key, products[row]) not in told:
                told.add((key, products[row]))
                note(row, SHARED_TEXT, label, text, f"also {_others(products[row], names_of[key])}")

    name = next((name for name in dataset.column_names if name.strip().lower() in _IDS), None)
    if name is not None:
        rows_of: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
        for row, own in enumerate(dataset[name][:]):
            if own is not None:
                rows_of[str(own)].setdefault(places[row], row)
        for own, rows in rows_of.items():
            for row in list(rows.values())[1:]:
                note(row, REPEATED_ID, name, own, f"also row {next(iter(rows))[1]}")

    if intake.own_splits is not None:
        for reason, names in ((LEAKING_PRODUCT, products), (LEAKING_PICTURE, picture_groups)):
            homes: dict[str, set[str]] = defaultdict(set)
            for own, split in zip(names, intake.own_splits, strict=True):
                homes[own].add(split)
            # Once for each split that it stands in: splits made by picture have every row of every product in this.
            told_of: set[tuple[str, str]] = set()
            for row, (own, split) in enumerate(zip(names, intake.own_splits, strict=True)):
                if len(homes[own]) > 1 and (own, split) not in told_of:
                    told_of.add((own, split))
                    value = products[row] if reason == LEAKING_PRODUCT else ids[row]
                    note(row, reason, "split", value, ", ".join(sorted(homes[own])))

    if count_tokens is not None and max_tokens is not None:
        different = list(dict.fromkeys(text for own in texts for text in own))
        lengths = dict(zip(different, count_tokens(different), strict=True))
        long: set[str] = set()
        for row, own in enumerate(texts):
            for text in own:
                if lengths[text] > max_tokens and text not in long:
                    long.add(text)
                    note(row, LONG_TEXT, label, text, f"{lengths[text]} tokens, {max_tokens} are read")
    return sorted(found, key=lambda each: (each.source, each.row))


def scripts(intake: Intake) -> list[tuple[str, float]]:
    """Writing systems of the texts with their shares, the commonest first; a text with kana is Japanese."""
    counts = Counter(script_of(text) for own in intake.dataset["texts"][:] for text in own)
    return [(name, count / counts.total()) for name, count in counts.most_common()]


def script_of(text: str) -> str:
    """The writing system of a text: `Latin`, `Japanese`, `Chinese characters`, `Cyrillic`, ..., `no letters`."""
    letters = Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha())
    if any(kana in letters for kana in _KANA):
        return "Japanese"
    if not letters:
        return "no letters"
    name = letters.most_common(1)[0][0]
    return _SCRIPTS.get(name, name.capitalize())


def _others(own: str, names: Sequence[str], shown: int = 2) -> str:
    """The first other names of those, own among them, and the number of the rest, in words; nothing without others."""
    first = [name for name in names[: shown + 1] if name != own][:shown]
    rest = len(names) - 1 - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")
