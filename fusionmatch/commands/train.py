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
"""`fusionmatch train`: heads and fusion branch (and towers) trained into a new base checkpoint."""

from dataclasses import dataclass, field

from torch import nn

from ..training import FusionMatchTrainingArguments, unwrap_model
from ..training.adapters import FULL_TOWER_LEARNING_RATE
from .arguments import CommandParser, FitDataArguments, ModelArguments
from .fitting import fit_and_report


@dataclass
class PartArguments:
    """Which parts train."""

    freeze_vision_model: bool = field(
        default=True, metadata={"help": "Keep the vision tower as it is; its features are computed once."}
    )
    freeze_text_model: bool = field(
        default=True, metadata={"help": "Keep the text tower as it is; its features are computed once."}
    )
    ranking_stage: bool = field(
        default=False,
        metadata={"help": "Train a ranking stage on the base; all else, and so its embeddings, stays as it is."},
    )

    def freeze(self, model: nn.Module) -> None:
        """Freezes what does not train."""
        core = unwrap_model(model)
        if self.ranking_stage:
            core.requires_grad_(False)
        core.vision_model.requires_grad_(not (self.ranking_stage or self.freeze_vision_model))
        core.text_model.requires_grad_(not (self.ranking_stage or self.freeze_text_model))


@dataclass
class TrainTrainingArguments(FusionMatchTrainingArguments):
    """Training arguments with defaults for a base on some thousand pictures."""

    output_dir: str | None = field(default="fusionmatch-base", metadata={"help": "Folder for the new checkpoint."})


def run(argv: list[str]) -> None:
    """Trains a base."""
    parser = CommandParser((ModelArguments, FitDataArguments, PartArguments, TrainTrainingArguments), "train")
    model_args, data_args, parts, args = parser.parse(argv)
    if parts.ranking_stage:
        if args.loss_components not in (["fused"], ["matching"]):
            raise ValueError(
                f"With `--ranking_stage` only that stage trains, by `matching`; got {args.loss_components}."
            )
        args.loss_components = ["matching"]
    if not (parts.freeze_vision_model and parts.freeze_text_model) and args.tower_learning_rate is None:
        args.tower_learning_rate = FULL_TOWER_LEARNING_RATE
    fit_and_report("checkpoint", model_args, data_args, args, parts.freeze, ranking_stage=parts.ranking_stage or None)
