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
"""The rows of `ablation.py`: what is trained beside what."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback


CONTROL = "control: plain path alone"


@dataclass
class Row:
    """
    One line of the table.

    Args:
        group, name (`str`):
            Where it stands.
        config (`dict`):
            Settings of [`FusionMatchConfig`] beside the recipe's.
        training (`dict`):
            Settings of [`FusionMatchTrainingArguments`] beside the recipe's.
        concepts (`bool`):
            Whether the model gets the concepts of the training texts, and the rows what they name of them.
        on (`str`):
            Name of the row whose trained model this one goes on from: with a ranking stage, or with LoRA.
        ranking (`bool`):
            Whether a ranking stage is trained on it.
        keep (`bool`):
            Whether the trained model stays in the work folder.
        step_schedule (`bool`):
            Whether the learning rate falls to a tenth after half of the steps.
        peer (`str`):
            Name of the peer in `peers.py`.
        one_seed (`bool`):
            Whether the row is run with the first seed only: part of a search, or long.
        against (`str`):
            Name of the row that the difference is taken to.
    """

    group: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    concepts: bool = False
    on: str = ""
    ranking: bool = False
    keep: bool = False
    step_schedule: bool = False
    peer: str = ""
    one_seed: bool = False
    against: str = CONTROL


class StepSchedule(TrainerCallback):
    """A tenth of the rate from the middle of the training on, as CVSE has it."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        scheduler = kwargs["lr_scheduler"]
        warmed = scheduler.lr_lambdas
        middle = state.max_steps / 2
        scheduler.lr_lambdas = [
            lambda step, before=before: before(step) * (0.1 if step >= middle else 1.0) for before in warmed
        ]


NO_BRANCH = {"vision_feature_levels": [], "text_feature_levels": []}
LAST_LEVEL = {"vision_feature_levels": [-1], "text_feature_levels": [-1]}
TWO_LEVELS = {"vision_feature_levels": [-6, -1], "text_feature_levels": [-1]}
SIGMOID = {"logit_scale_init_value": 2.3026, "logit_bias_init_value": -10.0}
# From the scale that the recipe starts InfoNCE from.
SIGMOID_50 = SIGMOID | {"logit_scale_init_value": 3.912}
CVSE_WEIGHTS = {
    "loss_weighting": "fixed",
    "loss_weights": {"fused": 3.0, "instance": 5.0, "consensus": 1.0, "concept": 2.0},
}
SCHEMES = ("unit", "random", "proportional", "inverse", "relative", "relative_first", "uncertainty", "dwa", "cov")
RANKING = {"loss_components": ["matching"], "texts_per_image": 1, "num_train_epochs": 10}
# Far fewer steps: each goes through both towers.
LORA = {"num_train_epochs": 2, "per_device_train_batch_size": 64, "texts_per_image": 1, "learning_rate": 2e-4}
PEERS = ("VSE++", "VSE-infinity", "CVSE", "sentence-transformers", "VisionTextDualEncoder")

# Of these there are many: they take one caption a picture and step, and are compared with each other.
ONE_CAPTION = {"texts_per_image": 1}
TRIPLET = {"contrastive_loss": "triplet"}
CONSTANT = {"lr_scheduler_type": "constant_with_warmup"}
COSINE = "cosine, InfoNCE"
WEIGHTING, SCHEDULE, LOSS = (f"{what}, one caption a step" for what in ("weighting", "schedule", "loss"))

CONCEPTS = {"loss_components": ["fused", "instance", "consensus", "concept"]}
BASE = "+ attention, last level"

ROWS = [
    Row("architecture", CONTROL, NO_BRANCH, keep=True),
    Row("architecture", BASE, LAST_LEVEL, keep=True),
    Row("architecture", "+ two levels, weighted sum", TWO_LEVELS | {"fusion_mode": "weighted_sum"}),
    Row("architecture", "+ two levels, gated", TWO_LEVELS | {"fusion_mode": "gated"}),
    Row("architecture", "+ two levels, concat", TWO_LEVELS | {"fusion_mode": "concat"}),
    Row("architecture", "+ consensus, its losses", LAST_LEVEL, CONCEPTS, concepts=True),
    Row("ranking stage", "+ ranking stage", training=RANKING, on=BASE, ranking=True, against=BASE),
    *(Row("peers", peer, peer=peer) for peer in (*PEERS, "sentence-transformers, both ways")),
    *(
        Row(WEIGHTING, name, LAST_LEVEL, ONE_CAPTION | settings, concepts=True, against="unit")
        for name, settings in (
            ("fused alone", {}),
            ("fixed 3, 5, 1, 2 (CVSE)", CONCEPTS | CVSE_WEIGHTS),
            *((scheme, CONCEPTS | {"loss_weighting": scheme}) for scheme in SCHEMES),
        )
    ),
    *(
        Row(group, name, config, ONE_CAPTION | settings, step_schedule=step, against=COSINE)
        for group, name, config, settings, step in (
            (SCHEDULE, COSINE, LAST_LEVEL, {}, False),
            (SCHEDULE, "constant after warm-up", LAST_LEVEL, CONSTANT, False),
            (SCHEDULE, "a tenth after half of the steps", LAST_LEVEL, CONSTANT, True),
            (LOSS, "sigmoid", LAST_LEVEL | SIGMOID, {"contrastive_loss": "sigmoid"}, False),
            (LOSS, "sigmoid, scale from 50", LAST_LEVEL | SIGMOID_50, {"contrastive_loss": "sigmoid"}, False),
            (LOSS, "triplet", LAST_LEVEL, TRIPLET | {"triplet_warmup_steps": 23}, False),
            (
                LOSS,
                "triplet, no dropout",
                LAST_LEVEL | {"feature_dropout": 0.0, "head_dropout": 0.0},
                TRIPLET | {"triplet_warmup_steps": 23},
                False,
            ),
            (
                LOSS,
                "triplet, mean of hinges for half of it",
                LAST_LEVEL,
                TRIPLET | {"triplet_warmup_steps": 230},
                False,
            ),
        )
    ),
    Row("recipe", "control, one caption a step", NO_BRANCH, ONE_CAPTION),
    Row("recipe", "control, one view a picture", NO_BRANCH, {"image_views": 1}),
    Row("recipe", "control, scale from 14.3", NO_BRANCH | {"logit_scale_init_value": 2.6592}),
    Row("recipe", "control, head of 1024", NO_BRANCH | {"base_head_dim": 1024}),
    Row("recipe", "two levels, gated, -4 and -1", TWO_LEVELS | {"vision_feature_levels": [-4, -1]}),
    Row("tuning of towers", "control + LoRA in both towers", training=LORA, on=CONTROL, one_seed=True),
    Row("tuning of towers", "+ LoRA in both towers", training=LORA, on=BASE, one_seed=True, against=BASE),
]

# Each kind of row at other rates than the recipe's 1e-3 (LoRA's 2e-4): by their name here, what they vary, the rates.
SEARCH = {
    "control": (CONTROL, (5e-4, 2e-3)),
    "attention": (BASE, (5e-4, 2e-3)),
    "two levels": ("+ two levels, gated", (5e-4, 2e-3)),
    "consensus": ("+ consensus, its losses", (5e-4, 2e-3)),
    "sigmoid, scale from 50": ("sigmoid, scale from 50", (5e-4, 2e-3)),
    "triplet, no dropout": ("triplet, no dropout", (5e-4, 2e-3)),
    "ranking stage": ("+ ranking stage", (2e-4, 5e-4)),
    "LoRA": ("+ LoRA in both towers", (1e-4, 5e-4)),
    **{peer: (peer, (2e-4, 5e-4, 2e-3, 4e-3)) for peer in PEERS},
}
ROWS += [
    dataclasses.replace(
        row,
        group="learning rate",
        name=f"{name}, {rate:g}",
        training=row.training | {"learning_rate": rate},
        keep=False,
        one_seed=True,
    )
    for name, (varied, rates) in SEARCH.items()
    for row in ROWS
    if row.name == varied
    for rate in rates
]
