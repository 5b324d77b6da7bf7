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
"""The page that a manager reads: one HTML file that needs nothing beside it, in English or Japanese."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..catalogue.quarantine import QuarantinedRow, count_reasons
from ..evaluation.intervals import Interval
from ..evaluation.queries import (
    FEW,
    Difference,
    QueryResults,
    columns_to_divide_by,
    compare,
    divide,
    recall_intervals,
)
from ..evaluation.tables import metrics_table
from ..training.pipeline import METRICS_FILE, QUERIES_BEFORE_FILE, QUERIES_FILE
from .plots import depth_plot, have_matplotlib, recalls_plot
from .record import EXAMPLES, FINDINGS_FILE, QUARANTINE_FILE, RECORD_FILE, Example, Run, Shown
from .rollout import Rollout, plan
from .sheet import cost_rows, rollout_name, sheet_rows
from .sources import BOTH_FILES, Sources, rows_of, say
from .words import Words


_RECALLS = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
# Values shown of each column, rows of each fault, and ranges of its lines.
_WEAKEST, _FIRST_ROWS, _RANGES = 6, 5, 4
_SPLITS = ("train", "validation", "test")
_DISTINCT = "count(distinct product)"
_SOURCES = (RECORD_FILE, METRICS_FILE, QUERIES_FILE, QUERIES_BEFORE_FILE)


def environment() -> Environment:
    """Where the pages' templates are, and how they are filled in."""
    return Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def write_report(
    path: str | Path, runs: Sequence[str | Path], language: str = "en", rollout: Rollout | None = None
) -> Path:
    """
    Writes the report of one or several training runs as one HTML page.

    Args:
        path (`str` or `Path`): File to write. Links of its figures lead to the runs' files, relative to it.
        runs (`Sequence[str | Path]`): Folders that `fusionmatch adapt` or `fusionmatch train` wrote. Of several, each
            is compared with the first one where both had the same queries.
        language (`str`, *optional*, defaults to `"en"`): `en` or `ja`.
        rollout ([`~fusionmatch.report.rollout.Rollout`], *optional*): A shop's own figures, for the sheet of the
            staged rollout.

    Returns:
        `Path`: the file.

    Raises:
        `FileNotFoundError`: a folder is no whole training run.
        `ValueError`: there is no run, or no such language.
        `ImportError`: a rollout is to be planned and statsmodels is not installed.
    """
    if not runs:
        raise ValueError("A report needs at least one run: the folder that `fusionmatch adapt` wrote.")
    words, path = Words(language), Path(path)
    loaded = [Run.load(run) for run in runs]
    page = (
        environment()
        .get_template("report.html")
        .render(
            t=words,
            parts=[_part(run, words, path, rollout, place) for place, run in enumerate(loaded, start=1)],
            overview=_overview(loaded, path, words) if len(loaded) > 1 else None,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _part(run: Run, t: Words, page: Path, rollout: Rollout | None, place: int) -> dict[str, Any]:
    """All that the template shows of one run."""
    record, metrics = run.record, run.metrics
    intervals = [recall_intervals([queries]) for queries in (run.before, run.after)]
    links = {
        name: _link(page, run.folder / name)
        for name in (*_SOURCES, QUARANTINE_FILE, FINDINGS_FILE)
        if (run.folder / name).is_file()
    }
    if rollout is not None and rollout.path is not None:
        links[rollout_name(rollout)] = _link(page, rollout.path)
    weak, changes = _weak_spots(run, t, links)
    rsum, cite = run.differences["rsum"], Sources(links)
    change = {"change": f"{rsum.value:+.1f}", "low": f"{rsum.low:+.1f}", "high": f"{rsum.high:+.1f}"}
    change["p"], of_rsum = f"{rsum.p_value:.4f}", rows_of(run.after, "rsum", t, files=BOTH_FILES)
    verdict = {
        "verdict": rsum.verdict,
        "verdict_line": say(t, "verdict", **{name: cite.cite(each, of_rsum) for name, each in change.items()}),
        "plain": _in_plain_words(metrics["before"], metrics["after"], t, cite),
        "verdict_from": cite.line(),
    }
    sheet = None
    if rollout is not None:
        first = intervals[1]["i2t_recall@1"]
        made = plan(run, rollout, (first.value, first.low, first.high), changes)
        sheet = sheet_rows(made, run, rollout, t, first.value, Sources(links))
    return {
        "anchor": f"run{place}",
        "title": t(f"title_{record.what}", catalogue=record.catalogue),
        "folder": run.name,
        **verdict,
        "untrained": record.untrained_base,
        **_facts(run, t, Sources(links)),
        **_table(run, t, Sources(links)),
        **(_plots(run, intervals, t, Sources(links)) if have_matplotlib() else {"plots": []}),
        "weak": weak,
        "few": FEW,
        "examples": [
            (kind, [_example(each, f"{kind}[{i}]", t, Sources(links)) for i, each in enumerate(record.examples[kind])])
            for kind in EXAMPLES
            if record.examples.get(kind)
        ],
        "faults": [
            (kind, name, _faults(rows, name, t, Sources(links)))
            for kind, name, rows in (
                ("left_out", QUARANTINE_FILE, run.left_out),
                ("worth_a_look", FINDINGS_FILE, run.worth_a_look),
            )
            if rows
        ],
        "faults_from": Sources(links).line(
            *(
                f"{name}: reason, source, row ({t('lines_count', count=f'{len(rows):,}')})"
                for name, rows in ((QUARANTINE_FILE, run.left_out), (FINDINGS_FILE, run.worth_a_look))
                if name in links
            )
        ),
        **cost_rows(run, rollout, t, Sources(links)),
        "sheet": sheet,
        "command_folder": str(run.folder),
    }


def _facts(run: Run, t: Words, cite: Sources) -> dict[str, Any]:
    """What was tested on what."""
    record, metrics = run.record, run.metrics

    def of_record(name: str) -> Markup:
        value = getattr(record, name)
        return cite.cite(f"{value:,}" if isinstance(value, int) else value, f"{RECORD_FILE}: {name}")

    def of_metrics(value: float, place: str) -> Markup:
        return cite.cite(f"{value:,.0f}", f"{METRICS_FILE}: {place}")

    tested = len(set(run.after.table["product"].to_pylist()))
    counts = {name: of_metrics(metrics["pictures"][name], f"pictures.{name}") for name in _SPLITS}
    labelled = metrics["labelled_pictures"]
    facts = [
        say(
            t,
            "what_tested",
            pictures=of_metrics(metrics["after"]["i2t_queries"], "after.i2t_queries"),
            texts=of_metrics(metrics["after"]["t2i_queries"], "after.t2i_queries"),
            products=cite.cite(f"{tested:,}", f"{QUERIES_FILE}: {_DISTINCT} ({_count(run.after, t)})"),
            held_out=say(t, "not_held_out", count=of_record("seen_products"))
            if record.seen_products
            else cite.cite(t("held_out"), f"{RECORD_FILE}: seen_products"),
        ),
        say(
            t,
            "what_catalogue",
            rows=of_record("rows_read"),
            pictures=of_record("pictures"),
            products=of_record("products"),
            **counts,
        ),
        *(
            [say(t, "what_labelled", count=of_metrics(labelled, "labelled_pictures"))]
            if labelled < metrics["pictures"]["train"]
            else []
        ),
        say(
            t,
            "what_columns",
            columns=cite.cite(record.columns_read.say(t.value), f"{RECORD_FILE}: columns_read"),
        ),
        say(t, "what_base", **{name: of_record(name) for name in ("base", "version", "date")}),
    ]
    return {"facts": facts, "facts_from": cite.line()}


def _table(run: Run, t: Words, cite: Sources) -> dict[str, Any]:
    """Each measure before and after."""
    rows = []
    for row in metrics_table(run.metrics["before"], run.metrics["after"], run.differences):
        key = row["key"]
        before, after = f"before.{key}", f"after.{key}"
        rows.append(
            {
                "name": _measure(key, t),
                "chance": cite.cite(row["chance"], f"{METRICS_FILE}: before.chance_{key}"),
                "before": cite.cite(row["before"], f"{METRICS_FILE}: {before}"),
                "after": cite.cite(row["after"], f"{METRICS_FILE}: {after}"),
                "change": cite.cite(row["change"], f"{METRICS_FILE}: {after} - {before}"),
                "interval": cite.cite(row["interval"], rows_of(run.after, key, t, files=BOTH_FILES)),
                "direction": row["direction"],
                "key": key,
            }
        )
    fields = f"before.chance_KEY, before.KEY, after.KEY (KEY = {', '.join(row['key'] for row in rows)})"
    return {"table": rows, "table_from": cite.line(f"{METRICS_FILE}: {fields}", _both_ways(run, "1, 5, 10", t))}


def _both_ways(run: Run, k: str, t: Words) -> str:
    return f"{BOTH_FILES}: rank ≤ {k} (direction = i2t / t2i: {_counts(run.after, t)})"


def _counts(queries: QueryResults, t: Words) -> str:
    return t("rows_count", count=" / ".join(f"{len(queries.side(each, 'rank')):,}" for each in ("i2t", "t2i")))


def _count(queries: QueryResults, t: Words) -> str:
    return t("rows_count", count=f"{queries.table.num_rows:,}")


def _link(page: Path, target: Path) -> str:
    try:
        return quote(os.path.relpath(target.resolve(), page.resolve().parent).replace(os.sep, "/"))
    except ValueError:  # Windows: from one drive no relative path leads to another
        return target.resolve().as_uri()


def _measure(key: str, t: Words) -> str:
    direction, _, k = key.partition("_recall@")
    return f"{t(direction)} R@{k}" if k else t(key)


def _in_plain_words(before: dict[str, float], after: dict[str, float], t: Words, cite: Sources) -> list[Markup]:
    """The recalls as one would say them to somebody who has never heard of recall."""
    lines = []
    for direction in ("t2i", "i2t"):
        keys = [f"{direction}_recall@{k}" for k in (1, 10)]
        now, then = (
            [cite.cite(f"{part[key]:.0f}", f"{METRICS_FILE}: {side}.{key}") for key in keys]
            for side, part in (("after", after), ("before", before))
        )
        lines.append(say(t, f"plain_{direction}", r1=now[0], r10=now[1], b1=then[0], b10=then[1]))
    return lines


def _plots(run: Run, intervals: Sequence[dict[str, Interval]], t: Words, cite: Sources) -> dict[str, Any]:
    labels = t("before"), t("after")
    before, after = ([part[name] for name in _RECALLS] for part in intervals)
    chance = [run.metrics["before"].get(f"chance_{name}") for name in _RECALLS]
    drawn = recalls_plot([_measure(name, t) for name in _RECALLS], before, after, chance, (*labels, t("chance")))
    chances = f"{METRICS_FILE}: before.chance_{{{', '.join(_RECALLS)}}}"
    plots = [
        cite.cite(Markup(drawn), _both_ways(run, "1, 5, 10", t), chances),
        *(
            cite.cite(
                Markup(depth_plot(run.before, run.after, direction, labels)),
                rows_of(run.after, f"{direction}_recall@k", t, files=BOTH_FILES),
            )
            for direction in ("t2i", "i2t")
        ),
    ]
    return {"plots": plots, "plots_from": cite.line(_both_ways(run, "k", t), chances)}


def _weak_spots(run: Run, t: Words, links: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, Difference]]:
    """For each column of the catalogue that divides the queries the weakest values; and the change of every value."""
    spots: list[dict[str, Any]] = []
    changes: dict[str, Difference] = {}
    for column in columns_to_divide_by(run.after):
        before, rows = divide(run.before, column), []
        cite = Sources(links)
        for value, part in divide(run.after, column).items():
            if part.num_products < FEW or value not in before:
                continue
            found, change = recall_intervals([part]), compare([part], [before[value]])["rsum"]
            changes[f"{t.column(column)} = {t.part(column, value)}"] = change
            where = f"{column} = {value}"
            places = {key: rows_of(part, key, t, where) for key in ("i2t_recall@10", "t2i_recall@10", "rsum")}
            of_change = rows_of(part, "rsum", t, where, BOTH_FILES)
            row = {
                "value": t.part(column, value),
                "part": f"{value}: {_counts(part, t)}",
                "products": cite.cite(
                    f"{part.num_products:,}", f"{QUERIES_FILE}: {_DISTINCT} ({where}: {_count(part, t)})"
                ),
                "i2t": cite.cite(f"{found['i2t_recall@10'].value:.1f}", places["i2t_recall@10"]),
                "t2i": cite.cite(f"{found['t2i_recall@10'].value:.1f}", places["t2i_recall@10"]),
                "rsum": cite.cite(f"{found['rsum'].value:.1f}", places["rsum"]),
                "interval": cite.cite(f"[{found['rsum'].low:.1f}, {found['rsum'].high:.1f}]", places["rsum"]),
                "change": cite.cite(f"{change.value:+.1f}", of_change),
                "verdict": change.verdict,
                "said": cite.cite(t(f"{change.verdict}_short"), of_change),
            }
            rows.append((found["rsum"].value, row))
        if len(rows) > 1:
            shown = [row for _, row in sorted(rows, key=lambda each: each[0])[:_WEAKEST]]
            parts = ", ".join(row["part"] for row in shown)
            place = f"{BOTH_FILES}: {_DISTINCT}, rank ≤ 1, 5, 10 (direction = i2t / t2i, {column} = {parts})"
            spots.append({"column": t.column(column), "rows": shown, "from": cite.line(place)})
    return spots, changes


def _example(each: Example, name: str, t: Words, cite: Sources) -> dict[str, Any]:
    def figure(shown: Shown, label: str, right: bool = False) -> dict[str, Any]:
        place = t("place", file=shown.file, row=shown.row)
        return {"image": shown.image, "caption": f"{label}{shown.product}", "place": place, "right": right}

    label = t("wanted") if each.text else t("query")
    direction = "t2i" if each.text else "i2t"
    row = (
        f"direction = {direction}, product = {each.wanted.product}"
        if each.row is None
        else t("row_number", row=each.row)
    )
    sides = {
        side: cite.cite(rank, f"{file}: rank ({row})")
        for side, rank, file in (
            ("before", each.before, QUERIES_BEFORE_FILE),
            ("after", each.after, QUERIES_FILE),
        )
    }
    asked = t("quoted", text=each.text) if each.text else Markup("<b>{}</b>").format(t("picture_query"))
    return {
        "asked": cite.cite(asked, f"{RECORD_FILE}: examples.{name}"),
        "ranks": say(t, "ranks", **sides),
        "wanted": figure(each.wanted, f"{label}: "),
        "found": [
            figure(one, f"{i}. ", one.product == each.wanted.product) for i, one in enumerate(each.found, start=1)
        ],
        "from": cite.line(f"{BOTH_FILES}: rank ({row})", f"{RECORD_FILE}: examples.{name}"),
    }


def _faults(rows: Sequence[QuarantinedRow], name: str, t: Words, cite: Sources) -> list[dict[str, Any]]:
    several = len({row.source for row in rows}) > 1
    table = []
    for reason, count in count_reasons(rows):
        own = {line: row for line, row in enumerate(rows, start=1) if row.reason == reason}
        places = dict.fromkeys(f"{row.source} {row.row}" if several else str(row.row) for row in own.values())
        first = ", ".join(list(places)[:_FIRST_ROWS]) + (", …" if len(places) > _FIRST_ROWS else "")
        table.append(
            {
                "fault": t.value(reason),
                "count": cite.cite(f"{count:,}", f"{name}: reason = {reason}"),
                "rows": first,
                "lines": _ranges(list(own)),
            }
        )
    return table


def _ranges(numbers: Sequence[int]) -> str:
    """`1–3, 7` for 1, 2, 3 and 7; the first of them."""
    starts = [place for place, number in enumerate(numbers) if place == 0 or number != numbers[place - 1] + 1]
    ranges = [
        (numbers[start], numbers[end - 1]) for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True)
    ]
    said = [str(first) if first == last else f"{first}–{last}" for first, last in ranges[:_RANGES]]
    return ", ".join(said) + (",\N{NO-BREAK SPACE}…" if len(ranges) > _RANGES else "")


def _overview(runs: Sequence[Run], page: Path, t: Words) -> dict[str, Any]:
    """One line a run, with its difference to the first one."""
    lines, places = [], []
    for place, run in enumerate(runs, start=1):
        cite = Sources({name: _link(page, run.folder / name) for name in _SOURCES}, places)
        own, of_rsum = recall_intervals([run.after])["rsum"], rows_of(run.after, "rsum", t)
        share = run.metrics["trainable_parameters"] / run.metrics["parameters"]
        line: dict[str, Any] = {
            "anchor": f"run{place}",
            "name": run.name,
            "before": cite.cite(f"{run.metrics['before']['rsum']:.1f}", f"{METRICS_FILE}: before.rsum"),
            "after": cite.cite(f"{own.value:.1f}", of_rsum),
            "interval": cite.cite(f"[{own.low:.1f}, {own.high:.1f}]", of_rsum),
            "trained": cite.cite(f"{share:.1%}", f"{METRICS_FILE}: trainable_parameters / parameters"),
            "minutes": cite.cite(
                f"{run.metrics['training_seconds'] / 60:.1f}", f"{METRICS_FILE}: training_seconds / 60"
            ),
            "change": "",
            "verdict": "",
        }
        if place > 1:
            try:
                change = compare([run.after], [runs[0].after])["rsum"]
            except ValueError:
                line["verdict"] = t("not_same")
            else:
                against = of_rsum, rows_of(runs[0].after, "rsum", t, files=f"{runs[0].name}/{QUERIES_FILE}")
                line["change"] = cite.cite(f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]", *against)
                line["verdict"] = cite.cite(t(f"{change.verdict}_short"), *against)
        lines.append(line)
    return {"lines": lines, "from": Sources({}, places).line()}
