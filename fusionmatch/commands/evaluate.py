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
"""`fusionmatch evaluate`."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from torch import nn

from ..evaluation.intervals import Interval
from ..evaluation.queries import FEW, Difference, QueryResults, compare, divide, recall_intervals
from ..evaluation.retrieval import CatalogueEmbeddings, embed_catalogue
from ..evaluation.tables import ROWS
from ..evaluation.trec import read_trec, write_trec
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_model


@dataclass
class EvaluateArguments:
    """What is measured and where the numbers go."""

    split: str = field(default="test", metadata={"help": "Split to measure: test, validation, train or all."})
    baseline: str | None = field(
        default=None,
        metadata={
            "help": "What to compare with on the same queries: a checkpoint, an adapter, `base` for the base of an "
            "adapter, a file that --queries_file wrote, or a folder with TREC runs of any system."
        },
    )
    fail_on_regression: bool = field(
        default=False, metadata={"help": "Exit with 3 if RSUM is worse than the baseline's by more than chance."}
    )
    by: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns of the catalogue to divide by (category, color, ...), language or text_length."},
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    ranking_top_k: int = field(
        default=20, metadata={"help": "Candidates that a ranking stage, where there is one, looks at; 0 for none."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the metrics."})
    queries_file: str | None = field(
        default=None, metadata={"help": "Parquet file for what was found for each query."}
    )
    trec_dir: str | None = field(
        default=None, metadata={"help": "Folder for TREC runs and qrels, for trec_eval, ranx and the like."}
    )
    json: bool = field(default=False, metadata={"help": "Print the metrics as JSON and nothing else."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self) -> None:
        if self.fail_on_regression and self.baseline is None:
            raise ValueError("`--fail_on_regression` needs a `--baseline` to be worse than.")


# What `--fail_on_regression` exits with; 1 is an error, 2 a wrong command line.
REGRESSION = 3
METRIC_ROWS = (
    *ROWS,
    ("picture → text MRR", "i2t_mrr", 3),
    ("text → picture MRR", "t2i_mrr", 3),
    ("picture → text MAP@R", "i2t_map@r", 3),
    ("text → picture MAP@R", "t2i_map@r", 3),
    ("picture → text nDCG@10", "i2t_ndcg@10", 3),
    ("text → picture nDCG@10", "t2i_ndcg@10", 3),
)


def run(argv: list[str]) -> int:
    """Measures a model on a catalogue; returns the exit code."""
    model_args, data_args, args = CommandParser((ModelArguments, DataArguments, EvaluateArguments), "evaluate").parse(
        argv
    )
    intake = data_args.read()
    dataset = intake.dataset if args.split == "all" else _choose(data_args.split(intake), args.split)
    columns = dict.fromkeys([*dataset.column_names, "language", "text_length"])
    unknown = [column for column in args.by if column not in columns]
    if unknown:
        raise ValueError(f"`--by` names {unknown}; there are {', '.join(columns)}.")
    kept = None
    if Path(args.baseline or "").suffix == ".parquet":
        kept = QueryResults.load(args.baseline)
    elif args.baseline and (Path(args.baseline) / "t2i.run").is_file():
        kept = read_trec(args.baseline, dataset)
    model, processor = load_model(model_args)

    def measure(each: nn.Module, its_processor: Any) -> CatalogueEmbeddings:
        return embed_catalogue(
            each,
            its_processor,
            dataset,
            batch_size=args.batch_size,
            disable_tqdm=args.disable_tqdm or args.json,
            ranking_top_k=args.ranking_top_k,
        )

    found = measure(model, processor)
    queries = QueryResults.from_embeddings(found, dataset)
    metrics: dict[str, Any] = found.metrics() | queries.summary
    if args.queries_file:
        queries.save(args.queries_file)
    if args.trec_dir:
        write_trec(args.trec_dir, found, dataset)
    intervals = recall_intervals([queries])
    metrics["intervals"] = {name: [each.low, each.high] for name, each in intervals.items()}
    differences = None
    if args.baseline is not None:
        other = kept
        if other is None:
            other = QueryResults.from_embeddings(
                _baseline(args.baseline, model, processor, model_args, measure), dataset
            )
        before, differences = recall_intervals([other]), compare([queries], [other])
        metrics["baseline"] = {name: each.value for name, each in before.items()} | other.summary
        metrics["change"] = {
            name: {"value": each.value, "interval": [each.low, each.high], "p_value": each.p_value}
            for name, each in differences.items()
        }
    parts = {column: divide(queries, column) for column in args.by}
    divided = {column: {value: recall_intervals([part]) for value, part in by.items()} for column, by in parts.items()}
    metrics["by"] = {
        column: {
            value: {name: [each.value, each.low, each.high] for name, each in recalls.items()}
            for value, recalls in values.items()
        }
        for column, values in divided.items()
    }
    if args.output_file:
        Path(args.output_file).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(metrics))
    else:
        products = len(set(dataset["product"]))
        print(f"{len(dataset):,} pictures of {products:,} products, split {args.split}; 95 % intervals over products")
        print(_table(metrics, intervals, differences))
        for column, values in divided.items():
            products = {value: part.num_products for value, part in parts[column].items()}
            print(f"\n{_divided(column, values, products)}")
    worse = differences is not None and differences["rsum"].verdict == "worse"
    return REGRESSION if args.fail_on_regression and worse else 0


def _baseline(
    name: str,
    model: nn.Module,
    processor: Any,
    model_args: ModelArguments,
    measure: Callable[[nn.Module, Any], CatalogueEmbeddings],
) -> CatalogueEmbeddings:
    if name == "base":
        if not hasattr(model, "disable_adapter"):
            raise ValueError(
                f"`--baseline base` is the base of an adapter, and {model_args.model_name_or_path} is a checkpoint. "
                "Name the checkpoint to compare with."
            )
        with model.disable_adapter():
            return measure(model, processor)
    settings = dataclasses.replace(model_args, model_name_or_path=name, model_revision=None)
    return measure(*load_model(settings))


def _table(metrics: dict[str, Any], intervals: dict[str, Interval], differences: dict[str, Difference] | None) -> str:
    """Metrics with chance and interval; beside a baseline with its value, the change and a sentence about it."""
    head = f"{'':<28} {'chance':>7}"
    head += f" {'':>7} {'95 % interval':>16}" if differences is None else f" {'before':>7} {'now':>7} {'change':>8}"
    lines = [head if differences is None else f"{head} {'95 % interval':>16} {'p':>7}"]
    for label, name, digits in METRIC_ROWS:
        chance = metrics.get(f"chance_{name}")
        line = f"{label:<28} {'' if chance is None else f'{chance:.{digits}f}':>7}"
        value = f"{metrics[name]:>7.{digits}f}"
        if differences is None:
            ends = f"[{intervals[name].low:.1f}, {intervals[name].high:.1f}]" if name in intervals else ""
            line += f" {value} {ends:>16}"
        elif name in differences:
            each = differences[name]
            ends = f"[{each.low:+.1f}, {each.high:+.1f}]"
            line += f" {metrics['baseline'][name]:>7.1f} {value} {each.value:>+8.1f} {ends:>16} {each.p_value:>7.4f}"
        else:
            before = metrics["baseline"].get(name)
            change = "" if before is None else f"{metrics[name] - before:+.{digits}f}"
            line += f" {'' if before is None else f'{before:.{digits}f}':>7} {value} {change:>8}"
        lines.append(line.rstrip())
    if differences is not None:
        lines.append(differences["rsum"].sentence("RSUM", "the baseline"))
    return "\n".join(lines)


def _divided(column: str, values: dict[str, dict[str, Interval]], products: dict[str, int]) -> str:
    width = max(len(column), *map(len, values), 8)
    head = f"{column:<{width}} {'products':>8} {'p→t R@1':>8} {'R@10':>6} {'t→p R@1':>8} {'R@10':>6} {'RSUM':>7}"
    lines = [f"{head} {'95 % interval':>16}"]
    for value, found in values.items():
        recalls = [found[name].value for name in ("i2t_recall@1", "i2t_recall@10", "t2i_recall@1", "t2i_recall@10")]
        cells = " ".join(f"{recall:>{8 if i % 2 == 0 else 6}.1f}" for i, recall in enumerate(recalls))
        # Samples of a handful of products say nothing of others.
        ends = f"[{found['rsum'].low:.1f}, {found['rsum'].high:.1f}]" if products[value] >= FEW else "few products"
        lines.append(f"{value:<{width}} {products[value]:>8} {cells} {found['rsum'].value:>7.1f} {ends:>16}")
    return "\n".join(lines)


def _choose(splits: datasets.DatasetDict, name: str) -> datasets.Dataset:
    if name not in splits:
        raise ValueError(f"There is no split {name!r}; there are {', '.join(splits)} and all.")
    return splits[name]
