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
import json
from pathlib import Path

import pytest

from fusionmatch.catalogue.quarantine import QuarantinedRow, write_quarantine
from fusionmatch.evaluation.intervals import bootstrap_recalls
from fusionmatch.evaluation.queries import QueryResults
from fusionmatch.report.record import Example, Record, Shown


PIXEL = "data:image/jpeg;base64,AAAA"
PRODUCTS = 24
# The text of the first product.
TEXT = "<script>傘"


def queries(ranks, colors):
    rows = [
        {
            "direction": direction,
            "query": TEXT if direction == "t2i" and i == 0 else f"{direction} <{i}>",
            "product": f"p{i} <b>",
            "rank": rank,
            "average_precision": rank and 1 / rank,
            "ndcg@10": rank and 1 / rank,
        }
        for direction in ("i2t", "t2i")
        for i, rank in enumerate(ranks)
    ]
    run = QueryResults.from_rows(rows)
    return QueryResults(run.table.append_column("color", [colors * 2]))


@pytest.fixture
def make_run(tmp_path):
    """Writes a run's folder as `fusionmatch adapt` leaves it, with the ranks wanted."""

    def make(name, before, after, seconds=90.0, **record):
        folder: Path = tmp_path / name
        folder.mkdir()
        colors = ["red"] * (PRODUCTS // 2) + ["blue <i>"] * (PRODUCTS // 2)
        metrics = {
            "training_seconds": seconds,
            "steps": 40,
            "trainable_parameters": 1_000,
            "parameters": 100_000,
            "labelled_pictures": 80,
            "pictures": {"train": 80, "validation": 16, "test": PRODUCTS},
            "products": {"train": 40, "validation": 8, "test": PRODUCTS},
        }
        for side, ranks in (("before", before), ("after", after)):
            found = queries(ranks, colors)
            found.save(folder / ("queries.parquet" if side == "after" else "queries_before.parquet"))
            products = (found.side("i2t", "product"), found.side("t2i", "product"))
            recalls = bootstrap_recalls([found.ranks], *products, num_samples=1)
            metrics[side] = {key: each.value for key, each in recalls.items()} | found.summary
            asked = float(sum(rank > 0 for rank in ranks))
            metrics[side] |= {"i2t_queries": asked, "t2i_queries": asked, "chance_rsum": 30.0}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        shown = [Shown(PIXEL, f"p{i} <b>", "products.csv", 12 + i) for i in range(4)]
        text = Example(TEXT, before[0], after[0], shown[0], shown[:1], PRODUCTS + 1)
        picture = Example(None, before[3], after[3], shown[3], shown[2:], 4)
        facts = {
            "what": "adapter",
            "catalogue": "shop & co.csv",
            "base": "base",
            "version": "1.2.3",
            "date": "2026-01-31",
            "machine": "CPU, 2 threads",
            "rows_read": 100,
            "rows_used": 98,
            "pictures": 120,
            "products": 72,
            "columns_read": {"image": "image", "texts": ["title", "text"], "guessed": ["image"]},
            "seen_products": 0,
            "untrained_base": False,
            "examples": {"hits": [text], "misses": [], "pictures": [picture]},
        }
        Record(**(facts | record)).save(folder)
        faults = [QuarantinedRow("products.csv", row, "picture file is missing") for row in (3, 9)]
        write_quarantine(faults, folder / "quarantine.jsonl")
        write_quarantine([], folder / "findings.jsonl")
        return folder

    return make
