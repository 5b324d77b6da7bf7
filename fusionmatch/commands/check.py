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
"""`fusionmatch check CATALOGUE`: what is wrong with a catalogue, before anything is trained on it."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..catalogue import Intake
from ..catalogue.doctor import examine, languages
from ..catalogue.quarantine import QUARANTINE_SUFFIXES, QuarantinedRow, write_quarantine
from ..evaluation.inputs import count_tokens, text_limit
from ..evaluation.mismatches import FEWEST_PRODUCTS, MISMATCH, Listing, suspicious_listings, tower_vectors
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_model


@dataclass
class CheckArguments:
    """What is looked at, and where it is written."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint or adapter; with it texts are found that it cannot read whole."}
    )
    mismatches: bool = field(
        default=False,
        metadata={
            "help": "Find pictures and texts that may not belong together; looks at every picture with the model, or "
            "with the starter base, and needs no training."
        },
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for `quarantine` (what cannot be used) and `findings` (worth a look)."}
    )
    format: str = field(default="csv", metadata={"help": "csv for a spreadsheet, jsonl for programs."})
    examples: int = field(default=2, metadata={"help": "Examples shown of each kind."})

    def __post_init__(self) -> None:
        if f".{self.format}" not in QUARANTINE_SUFFIXES:
            raise ValueError(f"`--format` must be csv or jsonl, got {self.format!r}.")


def run(argv: list[str]) -> None:
    """Reads a catalogue and says what is wrong with it."""
    data_args, args = CommandParser((DataArguments, CheckArguments), "check", positional="catalogue").parse(argv)
    intake = data_args.read()
    tokens = {}
    if args.model_name_or_path is not None or args.mismatches:
        model, processor = load_model(ModelArguments(model_name_or_path=args.model_name_or_path))
        limit = text_limit(processor, model.config.text_config)
        tokens = {"count_tokens": partial(count_tokens, processor), "max_tokens": limit}
    findings = examine(intake, **tokens)
    if args.mismatches:
        findings += _mismatches(model, processor, intake, args.disable_tqdm)
    print(intake.summary().split("\nQuarantined")[0])
    shares = ", ".join(f"{name} {share:.1%}" for name, share in languages(intake))
    print(f"Texts by language: {shares}.")
    for title, rows in (("Left out", intake.quarantine), ("Worth a look, used all the same", findings)):
        print(f"\n{title}: {len(rows):,}")
        _show(rows, args.examples)
    if args.output_dir is not None:
        folder = Path(args.output_dir)
        for name, rows in (("quarantine", intake.quarantine), ("findings", findings)):
            print(f"Written: {write_quarantine(rows, folder / f'{name}.{args.format}')}")


def _mismatches(model: nn.Module, processor: Any, intake: Intake, disable_tqdm: bool) -> list[QuarantinedRow]:
    """Rows whose picture most other texts fit better than their own does, the worst first."""
    products = list(intake.dataset["product"])
    if len(set(products)) < FEWEST_PRODUCTS:
        print(f"Pairs were not compared: that takes {FEWEST_PRODUCTS} products, there are {len(set(products))}.")
        return []
    dataset = intake.dataset
    vectors = tower_vectors(model, processor, dataset, disable_tqdm=disable_tqdm)
    label = " + ".join(intake.columns.texts)
    source_rows, ids, texts = (list(dataset[name]) for name in ("source_row", "image_id", "texts"))

    def finding(listing: Listing) -> QuarantinedRow:
        row, detail = listing.row, f"{listing.share:.0%} of the other products' texts fit better"
        if listing.swapped_with is not None:
            detail += f"; its text may be that of {ids[listing.swapped_with]}, and the other way round"
        value = f"{ids[row]} | {texts[row][0]}"
        return QuarantinedRow(intake.files[row], source_rows[row], MISMATCH, field=label, value=value, detail=detail)

    return [finding(listing) for listing in suspicious_listings(*vectors, products)]


def _show(rows: list[QuarantinedRow], examples: int) -> None:
    kinds: dict[str, list[QuarantinedRow]] = defaultdict(list)
    for row in rows:
        kinds[row.reason].append(row)
    several = len({row.source for row in rows}) > 1
    for reason, each in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"  {len(each):>6,}  {reason}")
        for row in each[:examples]:
            value = "" if row.value is None else f": {row.value if len(row.value) <= 60 else row.value[:59] + '…'}"
            place = f"{row.source}, row {row.row}" if several else f"row {row.row}"
            print(f"          {place}{value}{'' if row.detail is None else f' ({row.detail})'}")
