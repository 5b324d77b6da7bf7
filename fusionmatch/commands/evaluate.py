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

import json
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from ..evaluation.queries import QueryResults
from ..evaluation.retrieval import embed_catalogue
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_model


@dataclass
class EvaluateArguments:
    """What is measured and where the numbers go."""

    split: str = field(default="test", metadata={"help": "Split to measure: test, validation, train or all."})
    batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    ranking_top_k: int = field(
        default=20, metadata={"help": "Candidates that a ranking stage, where there is one, looks at; 0 for none."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the metrics."})
    queries_file: str | None = field(
        default=None, metadata={"help": "Parquet file for what was found for each query."}
    )
    json: bool = field(default=False, metadata={"help": "Print the metrics as JSON and nothing else."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})


def run(argv: list[str]) -> None:
    """Measures a model on a catalogue."""
    model_args, data_args, args = CommandParser((ModelArguments, DataArguments, EvaluateArguments), "evaluate").parse(
        argv
    )
    intake = data_args.read()
    dataset = intake.dataset if args.split == "all" else _choose(data_args.split(intake), args.split)
    model, processor = load_model(model_args)
    found = embed_catalogue(
        model,
        processor,
        dataset,
        batch_size=args.batch_size,
        disable_tqdm=args.disable_tqdm or args.json,
        ranking_top_k=args.ranking_top_k,
    )
    metrics = found.metrics()
    if args.queries_file:
        QueryResults.from_embeddings(found, dataset).save(args.queries_file)
    if args.output_file:
        Path(args.output_file).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(metrics))
        return
    print(f"{len(dataset)} pictures of {len(set(dataset['product']))} products, split {args.split}:")
    width = max(map(len, metrics))
    print("\n".join(f"  {name:<{width}}  {value:10.2f}" for name, value in metrics.items()))


def _choose(splits: datasets.DatasetDict, name: str) -> datasets.Dataset:
    if name not in splits:
        raise ValueError(f"There is no split {name!r}; there are {', '.join(splits)} and all.")
    return splits[name]
