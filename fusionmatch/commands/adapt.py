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
"""`fusionmatch adapt`: an adapter for a catalogue, or a checkpoint of its own, with a before/after report."""

from dataclasses import dataclass, field

from ..training import FusionMatchTrainingArguments
from ..training.sampling import SAMPLERS_HELP
from .arguments import CommandParser, FitDataArguments, LoraArguments, ModelArguments
from .fitting import fit_and_report


@dataclass
class AdaptTrainingArguments(FusionMatchTrainingArguments):
    """Training arguments with defaults for an adapter on a catalogue of some hundred to some thousand pictures."""

    output_dir: str | None = field(default="fusionmatch-adapter", metadata={"help": "Folder for the adapter."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Pairs in a batch, for each process."})
    num_train_epochs: float = field(default=6.0, metadata={"help": "Passes over the training pictures."})
    batch_sampler: str = field(
        default="no_duplicates",
        metadata={"help": f"{SAMPLERS_HELP} The last not with unpaired texts."},
    )


def run(argv: list[str]) -> None:
    """Adapts a base to a catalogue."""
    parser = CommandParser((ModelArguments, FitDataArguments, LoraArguments, AdaptTrainingArguments), "adapt")
    model_args, data_args, lora_args, args = parser.parse(argv)
    what = "checkpoint" if lora_args.preset == "full" else "adapter"
    lora_args.settle(args)
    fit_and_report(what, model_args, data_args, args, lora_args.prepare, **lora_args.loading(args))
