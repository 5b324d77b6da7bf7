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

from ..catalogue.quarantine import QuarantinedRow, count_reasons
from ..evaluation.intervals import Interval
from ..evaluation.queries import FEW, Difference, columns_to_divide_by, compare, divide, recall_intervals
from ..evaluation.tables import metrics_table
from ..training.pipeline import METRICS_FILE, QUERIES_BEFORE_FILE, QUERIES_FILE
from .plots import depth_plot, have_matplotlib, recalls_plot
from .record import EXAMPLES, FINDINGS_FILE, QUARANTINE_FILE, RECORD_FILE, Example, Run, Shown
from .rollout import Condition, Rollout, Sheet, plan
from .words import Words


_RECALLS = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
# Values shown of each column, and rows of each fault.
_WEAKEST, _FIRST_ROWS = 6, 5
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
            overview=_overview(loaded, words) if len(loaded) > 1 else [],
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _part(run: Run, t: Words, page: Path, rollout: Rollout | None, place: int) -> dict[str, Any]:
    """All that the template shows of one run."""
    record, metrics = run.record, run.metrics
    intervals = [recall_intervals([queries]) for queries in (run.before, run.after)]
    weak, changes = _weak_spots(run, t)
    tested = len(set(run.after.side("t2i", "product")) | set(run.after.side("i2t", "product")))
    held_out = t("not_held_out", count=record.seen_products) if record.seen_products else t("held_out")
    counts = {name: f"{metrics['pictures'][name]:,}" for name in ("train", "validation", "test")}
    labelled = metrics["labelled_pictures"]
    facts = [
        t(
            "what_tested",
            pictures=f"{metrics['after']['i2t_queries']:,.0f}",
            texts=f"{metrics['after']['t2i_queries']:,.0f}",
            products=tested,
            held_out=held_out,
        ),
        t(
            "what_catalogue",
            rows=f"{record.rows_read:,}",
            pictures=f"{record.pictures:,}",
            products=f"{record.products:,}",
            **counts,
        ),
        *([t("what_labelled", count=f"{labelled:,}")] if labelled < metrics["pictures"]["train"] else []),
        t("what_columns", columns=record.columns_read.say(t.value)),
        t("what_base", base=record.base, version=record.version, date=record.date),
    ]
    rsum = run.differences["rsum"]
    sheet = None
    if rollout is not None:
        first = intervals[1]["i2t_recall@1"]
        sheet = _sheet_rows(
            plan(run, rollout, (first.value, first.low, first.high), changes),
            rollout,
            t,
            first.value,
            len(run.after.side("t2i", "query")),
        )
    return {
        "anchor": f"run{place}",
        "title": t(f"title_{record.what}", catalogue=record.catalogue),
        "folder": run.name,
        "links": {
            name: _link(page, run.folder / name)
            for name in (*_SOURCES, QUARANTINE_FILE, FINDINGS_FILE)
            if (run.folder / name).is_file()
        },
        "verdict": rsum.verdict,
        "verdict_line": t(
            "verdict",
            change=f"{rsum.value:+.1f}",
            low=f"{rsum.low:+.1f}",
            high=f"{rsum.high:+.1f}",
            p=f"{rsum.p_value:.4f}",
        ),
        "plain": _in_plain_words(metrics["before"], metrics["after"], t),
        "untrained": record.untrained_base,
        "facts": facts,
        "table": [
            row | {"name": _measure(row["key"], t)}
            for row in metrics_table(metrics["before"], metrics["after"], run.differences)
        ],
        "plots": _plots(run, intervals, t) if have_matplotlib() else [],
        "weak": weak,
        "few": FEW,
        "examples": [
            (kind, [_example(each, t) for each in record.examples.get(kind, [])])
            for kind in EXAMPLES
            if record.examples.get(kind)
        ],
        "faults": [
            (kind, name, rows)
            for kind, name, rows in (
                ("left_out", QUARANTINE_FILE, _faults(run.left_out, t)),
                ("worth_a_look", FINDINGS_FILE, _faults(run.worth_a_look, t)),
            )
            if rows
        ],
        "cost": _cost(run, rollout, t),
        "sheet": sheet,
        "command_folder": str(run.folder),
    }


def _link(page: Path, target: Path) -> str:
    try:
        return quote(os.path.relpath(target.resolve(), page.resolve().parent).replace(os.sep, "/"))
    except ValueError:  # Windows: from one drive no relative path leads to another
        return target.resolve().as_uri()


def _measure(key: str, t: Words) -> str:
    direction, _, k = key.partition("_recall@")
    return f"{t(direction)} R@{k}" if k else t(key)


def _in_plain_words(before: dict[str, float], after: dict[str, float], t: Words) -> list[str]:
    """The recalls as one would say them to somebody who has never heard of recall."""
    lines = []
    for direction in ("t2i", "i2t"):
        now, then = ([f"{part[f'{direction}_recall@{k}']:.0f}" for k in (1, 10)] for part in (after, before))
        lines.append(t(f"plain_{direction}", r1=now[0], r10=now[1], b1=then[0], b10=then[1]))
    return lines


def _plots(run: Run, intervals: Sequence[dict[str, Interval]], t: Words) -> list[str]:
    labels = t("before"), t("after")
    before, after = ([part[name] for name in _RECALLS] for part in intervals)
    chance = [run.metrics["before"].get(f"chance_{name}") for name in _RECALLS]
    return [recalls_plot([_measure(name, t) for name in _RECALLS], before, after, chance, (*labels, t("chance")))] + [
        depth_plot(run.before, run.after, direction, labels) for direction in ("t2i", "i2t")
    ]


def _weak_spots(run: Run, t: Words) -> tuple[list[tuple[str, list[dict[str, str]]]], dict[str, Difference]]:
    """For each column of the catalogue that divides the queries the weakest values; and the change of every value."""
    spots: list[tuple[str, list[dict[str, str]]]] = []
    changes: dict[str, Difference] = {}
    for column in columns_to_divide_by(run.after):
        before, rows = divide(run.before, column), []
        for value, part in divide(run.after, column).items():
            if part.num_products < FEW or value not in before:
                continue
            found, change = recall_intervals([part]), compare([part], [before[value]])["rsum"]
            changes[f"{t.column(column)} = {t.part(column, value)}"] = change
            row = {
                "value": t.part(column, value),
                "where": f"{QUERIES_FILE}: {column} = {value}",
                "products": str(part.num_products),
                "i2t": f"{found['i2t_recall@10'].value:.1f}",
                "t2i": f"{found['t2i_recall@10'].value:.1f}",
                "rsum": f"{found['rsum'].value:.1f}",
                "interval": f"[{found['rsum'].low:.1f}, {found['rsum'].high:.1f}]",
                "change": f"{change.value:+.1f}",
                "verdict": change.verdict,
            }
            rows.append((found["rsum"].value, row))
        if len(rows) > 1:
            spots.append((t.column(column), [row for _, row in sorted(rows, key=lambda each: each[0])[:_WEAKEST]]))
    return spots, changes


def _example(each: Example, t: Words) -> dict[str, Any]:
    def figure(shown: Shown, label: str, right: bool = False) -> dict[str, Any]:
        place = t("place", file=shown.file, row=shown.row)
        return {"image": shown.image, "caption": f"{label}{shown.product}", "place": place, "right": right}

    label = t("wanted") if each.text else t("query")
    return {
        "text": each.text,
        "ranks": t("ranks", before=each.before, after=each.after),
        "wanted": figure(each.wanted, f"{label}: "),
        "found": [
            figure(one, f"{i}. ", one.product == each.wanted.product) for i, one in enumerate(each.found, start=1)
        ],
    }


def _faults(rows: Sequence[QuarantinedRow], t: Words) -> list[dict[str, str]]:
    several = len({row.source for row in rows}) > 1
    table = []
    for reason, count in count_reasons(rows):
        own = [row for row in rows if row.reason == reason]
        places = dict.fromkeys(f"{row.source} {row.row}" if several else str(row.row) for row in own)
        first = ", ".join(list(places)[:_FIRST_ROWS]) + (", …" if len(places) > _FIRST_ROWS else "")
        table.append({"fault": t.value(reason), "count": f"{count:,}", "rows": first})
    return table


def _cost(run: Run, rollout: Rollout | None, t: Words) -> list[tuple[str, str, str]]:
    """Rows of name, value, and the field of `metrics.json` it comes from (or its formula)."""
    metrics = run.metrics
    share = metrics["trainable_parameters"] / metrics["parameters"]
    rows = [
        (
            t("cost_time"),
            t(
                "cost_time_value",
                minutes=f"{metrics['training_seconds'] / 60:.1f}",
                steps=f"{metrics['steps']:,}",
                machine=run.record.machine,
            ),
            "training_seconds, steps",
        ),
        (
            t("cost_weights"),
            t(
                "cost_weights_value",
                trained=f"{metrics['trainable_parameters']:,}",
                parameters=f"{metrics['parameters']:,}",
                share=f"{share:.1%}",
            ),
            "trainable_parameters, parameters",
        ),
    ]
    if rollout is not None and rollout.machine is not None:
        cost = metrics["training_seconds"] / 3600 * rollout.machine.hourly_cost
        value = t("cost_money_value", cost=f"{cost:,.2f}", currency=rollout.currency)
        rows.append((t("cost_money"), value, t("cost_money_formula")))
    return rows


def _sheet_rows(sheet: Sheet, rollout: Rollout, t: Words, recall: float, texts: int) -> dict[str, Any]:
    """The rollout sheet in words."""
    kpis = []
    if rollout.search is not None and sheet.clicks is not None:
        goal = rollout.search
        kpis.append(
            (
                t("kpi_clicks"),
                t("kpi_clicks_formula"),
                f"{100 * goal.click_through_rate:.3g} %",
                t("points", points=f"{100 * goal.smallest_change:+.3g}"),
                t("size_searches", count=f"{sheet.clicks.each_side:,}", days=sheet.clicks.days),
            )
        )
    if rollout.purchase is not None and sheet.steps is not None:
        kpis.append(
            (
                t("kpi_steps"),
                t("kpi_steps_formula"),
                f"{rollout.purchase.steps:g} ± {rollout.purchase.standard_deviation:g}",
                f"−{rollout.purchase.smallest_change:g}",
                t("size_orders", count=f"{sheet.steps.each_side:,}", days=sheet.steps.days),
            )
        )
    if rollout.cataloguing is not None and sheet.hours is not None:
        work = rollout.cataloguing
        saved, low, high = (f"{each:,.1f}" for each in sheet.hours)
        kpis.append(
            (
                t("kpi_hours"),
                t("kpi_hours_formula"),
                t("kpi_hours_today", hours=f"{work.products_per_month * work.minutes_by_hand / 60:,.1f}"),
                t(
                    "kpi_hours_saved",
                    saved=saved,
                    low=low,
                    high=high,
                    money=f"{sheet.hours[0] * work.hourly_cost:,.0f}",
                    currency=rollout.currency,
                ),
                t("kpi_hours_note", recall=f"{recall:.1f}", texts=f"{texts:,}"),
            )
        )

    def condition(each: Condition) -> tuple[str, bool, str]:
        return t(each.name, **each.figures), each.holds, each.detail

    test = rollout.test
    observed = t("observed_none")
    if rollout.observed is not None and sheet.change is not None:
        rates = {
            side: f"{arm.clicks / arm.searches:.2%}"
            for side, arm in (("new", rollout.observed.new), ("control", rollout.observed.control))
        }
        change, low, high = (f"{100 * each:+.2f}" for each in sheet.change)
        enough = "" if sheet.enough else t("observed_not_enough")
        observed = t("observed", **rates, change=change, low=low, high=high, enough=enough)
    return {
        "kpis": kpis,
        "size_note": t(
            "size_note", significance=f"{test.significance:g}", power=f"{test.power:g}", share=f"{test.share:.0%}"
        ),
        "offline": [condition(each) for each in sheet.offline],
        "start": sheet.start,
        "observed": observed,
        "outcome": sheet.outcome,
    }


def _overview(runs: Sequence[Run], t: Words) -> list[dict[str, str]]:
    """One line a run, with its difference to the first one."""
    lines = []
    for place, run in enumerate(runs, start=1):
        own = recall_intervals([run.after])["rsum"]
        line = {
            "anchor": f"run{place}",
            "name": run.name,
            "before": f"{run.metrics['before']['rsum']:.1f}",
            "after": f"{own.value:.1f}",
            "interval": f"[{own.low:.1f}, {own.high:.1f}]",
            "trained": f"{run.metrics['trainable_parameters'] / run.metrics['parameters']:.1%}",
            "minutes": f"{run.metrics['training_seconds'] / 60:.1f}",
            "change": "",
            "verdict": "",
        }
        if place > 1:
            try:
                change = compare([run.after], [runs[0].after])["rsum"]
            except ValueError:
                line["verdict"] = t("not_same")
            else:
                line["change"] = f"{change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}]"
                line["verdict"] = t(f"{change.verdict}_short")
        lines.append(line)
    return lines
