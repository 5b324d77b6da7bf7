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

import math
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .data import PairDataset


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
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}, rate {logs['learning_rate']:.1e}")
        if "eval_rsum" in logs:
            recalls = " / ".join(f"{logs[f'eval_{direction}_recall@1']:.1f}" for direction in ("i2t", "t2i"))
            self.training_bar.write(
                f"epoch {logs.get('epoch', 0):g}: validation RSUM {logs['eval_rsum']:.1f}, "
                f"R@1 picture → text / text → picture {recalls}"
            )
