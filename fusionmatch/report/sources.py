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
"""Where the figures of a page come from: each links to its file and names its field or rows; a line prints them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from ..evaluation.queries import QueryResults
from ..training.pipeline import QUERIES_BEFORE_FILE, QUERIES_FILE
from .words import Words


BOTH_FILES = f"{QUERIES_FILE}, {QUERIES_BEFORE_FILE}"


@dataclass
class Sources:
    """
    The figures of one block of a page. A place is written `file: field or rows`, such as `metrics.json: after.rsum`,
    and `file, file: rows` where a figure is made of the same rows of several files.

    Args:
        links (`Mapping[str, str]`): What leads to each file. A file without a link is named all the same.
        places (`list[str]`): All that was cited.
    """

    links: Mapping[str, str]
    places: list[str] = field(default_factory=list)

    def cite(self, value: Any, *places: str) -> Markup:
        """A figure as HTML: a link to its first file, with all its places as the title. Nothing has no source."""
        if value == "":
            return Markup()
        self.places += places
        files = _by_file(places)
        title = "; ".join(f"{names}: {_joined(found)}" for names, found in files.items())
        link = self.links.get(next(iter(files)).split(", ")[0])
        if link is None:
            return Markup('<span title="{}">{}</span>').format(title, value)
        return Markup('<a href="{}" title="{}">{}</a>').format(link, title, value)

    def line(self, *places: str) -> Markup:
        """These places, or else all that was cited, file by file: titles are not printed."""
        return Markup(" · ").join(
            Markup("{}: {}").format(Markup(", ").join(map(self._file, names.split(", "))), _joined(found))
            for names, found in _by_file(places or self.places).items()
        )

    def _file(self, name: str) -> Markup:
        link = self.links.get(name)
        return escape(name) if link is None else Markup('<a href="{}">{}</a>').format(link, name)


def _joined(found: Sequence[str]) -> str:
    """Fields with those of one section together: `after.{rsum, texts}, steps`."""
    sections: dict[str, list[str]] = {}
    for each in found:
        section, dot, name = each.partition(".")
        whole = not dot or not section.isidentifier() or " " in name
        sections.setdefault(each if whole else section, []).extend([] if whole else [name])
    return ", ".join(
        section if not names else f"{section}.{names[0]}" if len(names) == 1 else f"{section}.{{{', '.join(names)}}}"
        for section, names in sections.items()
    )


def _by_file(places: Sequence[str]) -> dict[str, list[str]]:
    files: dict[str, dict[str, None]] = {}
    for place in places:
        names, _, found = place.partition(": ")
        files.setdefault(names, {})[found] = None
    return {names: list(found) for names, found in files.items()}


def say(t: Words, key: str, **figures: Any) -> Markup:
    """A sentence as HTML, with figures that may be links."""
    return Markup(escape(t(key, **{name: f"{{{name}}}" for name in figures}))).format(**figures)


def rows_of(queries: QueryResults, measure: str, t: Words, part: str = "", files: str = QUERIES_FILE) -> str:
    """
    The rows that a recall, or RSUM, is counted in.

    Args:
        queries ([`~fusionmatch.evaluation.queries.QueryResults`]): Those of the part, or all.
        measure (`str`): `i2t_recall@10`, ..., or `rsum`.
        t ([`Words`]): The language.
        part (`str`, *optional*): What they are told by, such as `color = red`.
        files (`str`, *optional*): Files that hold them.

    Returns:
        `str`: a place, such as `queries.parquet: rank ≤ 10 (direction = i2t, color = red: 12 rows)`.
    """
    direction, _, k = measure.partition("_recall@")
    count = len(queries.side(direction, "rank")) if k else queries.table.num_rows
    told_by = ", ".join([f"direction = {direction}"] * bool(k) + [part] * bool(part))
    rows = t("rows_count", count=f"{count:,}")
    return f"{files}: rank ≤ {k or '1, 5, 10'} ({f'{told_by}: {rows}' if told_by else rows})"
