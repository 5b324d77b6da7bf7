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
"""Before/after tables of the metrics."""

from .queries import Difference


# (name shown, key in the metrics, digits)
ROWS = (
    ("picture → text R@1", "i2t_recall@1", 1),
    ("picture → text R@5", "i2t_recall@5", 1),
    ("picture → text R@10", "i2t_recall@10", 1),
    ("text → picture R@1", "t2i_recall@1", 1),
    ("text → picture R@5", "t2i_recall@5", 1),
    ("text → picture R@10", "t2i_recall@10", 1),
    ("RSUM (of 600)", "rsum", 1),
    ("picture → text median rank", "i2t_median_rank", 0),
    ("text → picture median rank", "t2i_median_rank", 0),
)


def metrics_table(
    before: dict[str, float], after: dict[str, float], differences: dict[str, Difference] | None = None
) -> list[dict[str, str]]:
    """
    Rows `key`, `name`, `chance`, `before`, `after`, `change`, `interval` (of the change, where it is known) and
    `direction` (`up` for better, `down` for worse, nothing where no difference is shown) of formatted numbers.
    """
    table = []
    for name, key, digits in ROWS:
        change = after[key] - before[key]
        better = change < 0 if "rank" in key else change > 0
        chance = before.get(f"chance_{key}")
        difference = (differences or {}).get(key)
        shown = change != 0 and (difference is None or "no" not in difference.verdict)
        table.append(
            {
                "key": key,
                "name": name,
                "chance": "" if chance is None else f"{chance:.{digits}f}",
                "before": f"{before[key]:.{digits}f}",
                "after": f"{after[key]:.{digits}f}",
                "change": f"{change:+.{digits}f}",
                "interval": "" if difference is None else f"[{difference.low:+.1f}, {difference.high:+.1f}]",
                "direction": "" if not shown else "up" if better else "down",
            }
        )
    return table


def format_table(
    before: dict[str, float], after: dict[str, float], differences: dict[str, Difference] | None = None
) -> str:
    """The before/after table for a terminal, with intervals and a verdict where the differences are given."""
    columns = ["name", "chance", "before", "after", "change"] + (["interval"] if differences else [])
    titles = {"name": "", "interval": "95 % interval"}
    rows = [
        {column: titles.get(column, column) for column in columns},
        *metrics_table(before, after, differences),
    ]
    widths = {column: max(len(row[column]) for row in rows) for column in columns}
    lines = [
        "  ".join(
            row[column].ljust(widths[column]) if column == "name" else row[column].rjust(widths[column])
            for column in columns
        )
        for row in rows
    ]
    verdict = [differences["rsum"].sentence("RSUM", "before")] if differences else []
    lines = [lines[0], "-" * len(lines[0]), *lines[1:], *verdict]
    return "\n".join(line.rstrip() for line in lines)
