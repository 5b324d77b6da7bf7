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
"""Run under torchrun or accelerate launch by test_distributed.py: trains a few steps and writes what it saw."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
import torch

from fusionmatch import FusionMatchTrainer, FusionMatchTrainingArguments, load_catalogue
from fusionmatch.training.objective import BatchPairs
from fusionmatch.training.weighting import SCHEMES
from tests.core.tiny import tiny_model, tiny_processor


def main() -> None:
    catalogue, folder, global_batch = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    mini_batch_size = int(sys.argv[4]) or None
    splits = load_catalogue(catalogue)
    # Three texts a picture: they have to rotate alike, however many processes there are. And two products each share a
    # picture, so that pairs are ignored whose halves are in two processes.
    splits = splits.map(
        lambda row, i: {"texts": [row["texts"][0], row["title"], row["color"]], "picture_group": f"group {i // 4}"},
        with_indices=True,
    )
    runs: dict[str, dict[str, Any]] = {
        "no_duplicates": {"max_steps": 20, "batch_sampler": "no_duplicates", "loss_weighting": "uncertainty"},
        # The order follows from embeddings of the main process; the others are given it.
        "hard_negatives": {"max_steps": 20, "batch_sampler": "hard_negatives", "loss_weighting": "cov"},
        # How many steps there are, and with it the schedule, follows from rows, batch, processes and accumulation.
        "two_epochs": {
            "num_train_epochs": 2,
            "gradient_accumulation_steps": 2,
            "lr_floor": 0.1,
            "warmup_steps": 0.25,
            "loss_weighting": "relative",
        },
    }
    if mini_batch_size is not None:
        # Order and schedule have nothing to do with the parts that a batch goes through the model in.
        runs = {"no_duplicates": runs["no_duplicates"]}
    # All weightings, but shortly: what could differ is what a step takes the losses to be.
    runs |= {scheme: {"max_steps": 3, "loss_weighting": scheme} for scheme in SCHEMES}
    runs["fixed"] |= {"loss_weights": {"fused": 1.0, "instance": 0.5}}
    reports = {}
    for name, settings in runs.items():
        # A smaller batch, so that two epochs have more than a few steps.
        batch = global_batch // 2 if name == "two_epochs" else global_batch
        reports[name] = train(splits["train"], folder / name, batch, mini_batch_size, **settings)
    (folder / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(reports))


def train(
    rows: datasets.Dataset, folder: Path, global_batch: int, mini_batch_size: int | None, **settings: Any
) -> dict[str, Any]:
    args = FusionMatchTrainingArguments(
        str(folder),
        per_device_train_batch_size=1,
        logging_steps=1,
        learning_rate=1e-3,
        mini_batch_size=mini_batch_size,
        texts_per_image=1,
        image_views=2,
        loss_components=["fused", "instance"],
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    args.per_device_train_batch_size = global_batch // args.world_size
    trainer = FusionMatchTrainer(tiny_model(), args, train_dataset=rows, processing_class=tiny_processor())
    ignored, losses_of = [], trainer.objective.losses

    def counted(model: Any, outputs: Any, pairs: BatchPairs, *others: Any, **labels: Any) -> dict[str, torch.Tensor]:
        ignored.append(int((pairs.ignored & ~pairs.positives).sum()))
        return losses_of(model, outputs, pairs, *others, **labels)

    trainer.objective.losses = counted
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    return {
        "world_size": args.world_size,
        "rows": len(rows),
        "batch": global_batch,
        "losses": losses,
        "rates": rates,
        "ignored": ignored,
        "weights": weights.tolist(),
    }


if __name__ == "__main__":
    main()
