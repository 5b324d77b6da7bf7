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
"""What happens beside the steps of a training."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .data import PairDataset


logger = logging.get_logger(__name__)

# Beyond this share of its time a training that waits for data is told so,
WAITING_SHARE = 0.3
# after as many steps as tell it, or at its end.
WAITING_STEPS = 50


class EpochCallback(TrainerCallback):
    """
    Tells the pairs which epoch it is, so that the texts of a picture rotate. Accelerate's data loader does so itself
    in a single process only.
    """

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # The epoch is a sum of fractions, and a resumed one begins in its middle.
        self.pairs.set_epoch(math.floor((state.epoch or 0) + 1e-6))


class Clock(TrainerCallback):
    """
    Seconds that a training took, those before it was gone on with among them; checkpoints keep them. `before` are
    those before the first step: of what was prepared, and up to the checkpoint that the training goes on from.
    """

    def __init__(self) -> None:
        self.before = 0.0
        self._begin = time.perf_counter()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begin = time.perf_counter()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What [`load_state_dict`] restores."""
        return {"seconds": torch.tensor(self.before + time.perf_counter() - self._begin, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Goes on with the seconds of a checkpoint."""
        self.before += state["seconds"].item()


class DataWait(TrainerCallback):
    """Says once that steps wait for their data. Evaluations and checkpoints are no part of the time that counts."""

    def __init__(self) -> None:
        self.on_train_begin()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._waited = self._taken = self._begin = 0.0
        self._steps = 0
        self._said = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what gets the data of a step."""
        self._begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - self._begin

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around what a sampler has the model compute; more workers would not make that faster."""
        start = time.perf_counter()
        yield
        self._begin += time.perf_counter() - start

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._taken += time.perf_counter() - self._begin
        self._steps += 1
        if self._steps == WAITING_STEPS:
            self._report(args)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._said:
            self._report(args)

    def _report(self, args: TrainingArguments) -> None:
        share = self._waited / max(self._taken, 1e-9)
        if share > WAITING_SHARE and args.should_log:
            self._said = True
            logger.warning(
                f"The training waits for its data {share:.0%} of the time. More `--dataloader_num_workers` (now "
                f"{args.dataloader_num_workers}), or smaller pictures on disk, would make it faster."
            )


class RetrievalProgressCallback(ProgressCallback):
    """
    [`~transformers.trainer_callback.ProgressCallback`] that writes losses and retrieval metrics as short lines instead
    of whole dictionaries; those are in the trackers and in `trainer_state.json`.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or logs is None:
            return
        if "loss" in logs:
            name = next((key.removeprefix("chance_") for key in logs if key.startswith("chance_")), None)
            loss = f"loss {float(logs['loss']):.3f}"
            if name is not None:
                # Of several components the one that has a chance level is shown beside it.
                several = f"loss_{name}" in logs
                loss += f", {name} {logs[f'loss_{name}']:.3f}" if several else ""
                loss += f" (by chance {logs[f'chance_{name}']:.3f})"
            self.training_bar.set_postfix_str(f"{loss}, rate {logs['learning_rate']:.1e}")
        if "eval_rsum" in logs:
            recalls = " / ".join(f"{logs[f'eval_{direction}_recall@1']:.1f}" for direction in ("i2t", "t2i"))
            self.training_bar.write(
                f"epoch {logs.get('epoch', 0):g}: validation RSUM {logs['eval_rsum']:.1f}, "
                f"R@1 picture → text / text → picture {recalls}"
            )


class LossLog(TrainerCallback):
    """
    Keeps the components of the loss and their weights: every step in a file, means since the last log for the logs.

    Args:
        path (`Path`, *optional*):
            JSON lines file, one line a (micro-)batch: `step` (optimizer steps done before), and for each component its
            loss and `weight_` and its name. `None` on all processes but the main one.
    """

    FILE = "losses.jsonl"

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._rows: list[dict[str, float]] = []
        self._since_log: list[dict[str, float]] = []

    def add(self, step: int, losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> None:
        """Takes one batch's components and weights."""
        row = {name: loss.item() for name, loss in losses.items()}
        row |= {f"weight_{name}": weight for name, weight in weights.items()}
        self._rows.append({"step": step, **row})
        self._since_log.append(row)

    def means(self) -> dict[str, float]:
        """Means since the last call, as `loss_NAME` and `weight_NAME`; nothing for a single component."""
        rows, self._since_log = self._since_log, []
        if not rows or len(rows[0]) == 2:
            return {}
        means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return {name if name.startswith("weight_") else f"loss_{name}": mean for name, mean in means.items()}

    def write(self, *_: Any, **__: Any) -> None:
        """Writes what was added since; before a checkpoint is, which the training may be gone on with from."""
        rows, self._rows = self._rows, []
        if self.path is not None and rows:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)

    on_log = on_train_end = write

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        # A resumed training does the steps after its checkpoint once more.
        kept = [line for line in lines if _step(line) < state.global_step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        partial.replace(self.path)


def _step(line: str) -> float:
    """The step of a line; none that any training comes to where a crash or a full disk left half a line."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
