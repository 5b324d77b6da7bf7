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

"""A trainer whose checkpoints hold all that an exact continuation needs, and nothing that is broken."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import REPOCARD_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from ..loading import precision, write_fingerprint
from .adapters import unwrap_model
from .annealing import take_rates_from
from .callbacks import LossLog
from .checkpoints import STATE_FILE, last_whole_checkpoint, words_for_a_full_disk
from .pushing import PushingTrainer


class ResumingTrainer(PushingTrainer):
    """
    The part of [`FusionMatchTrainer`] that writes and reads checkpoints: also the state of parts that Trainer does not
    know of, whole models through `from_pretrained`, and for adapters which base they were made on.
    """

    # By the name of its file, what has a state beside model, optimizer and schedule.
    _stateful: dict[str, Any]
    _loss_log: LossLog
    # Of the base before training, where an adapter is trained.
    _base_fingerprint: str | None
    _base_settings: dict[str, Any]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in Trainer, but `resume_from_checkpoint=True` is the last whole checkpoint, or the start without one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            for name, part in self._stateful.items():
                save_file(part.state_dict(), Path(output_dir) / name)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        rates = getattr(self.lr_scheduler, "base_lrs", None)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        for name, part in self._stateful.items():
            if (Path(checkpoint) / name).is_file():
                part.load_state_dict(load_file(Path(checkpoint) / name))
        if isinstance(self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR):
            take_rates_from(self.lr_scheduler, rates)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._reload(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._reload(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _reload(self, checkpoint: str) -> bool:
        """
        Loads a whole checkpoint into the model through `from_pretrained`.

        Checkpoints hold the names under which a tower's weights are published, and only `from_pretrained` turns those
        into the names of its modules. Trainer reads the file as it is and would leave such a tower (a ViT is one)
        as it was, with a warning.
        """
        whole = self._base_fingerprint is None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if whole:
            core = self.accelerator.unwrap_model(self.model)
            core.load_state_dict(type(core).from_pretrained(checkpoint, config=core.config).state_dict())
        return whole

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_finite()
        with words_for_a_full_disk(self.args.output_dir):
            self._loss_log.write()
            if self.args.should_save:
                # One of an earlier training in the same folder is no whole one from now on.
                folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                (folder / STATE_FILE).unlink(missing_ok=True)
            super()._save_checkpoint(*args, **kwargs)

    def check_finite(self) -> None:
        """
        Looks at the trained weights before they are saved.

        Raises:
            `FloatingPointError`: some are not finite.
        """
        broken = [
            name
            for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters()
            if parameter.requires_grad and not parameter.isfinite().all()
        ]
        if broken:
            raise FloatingPointError(
                f"After step {self.state.global_step} weights are not finite ({', '.join(broken[:3])}); they are not "
                f"saved. {self._after_nan()}"
            )

    def _after_nan(self) -> str:
        return (
            "Checkpoints written before are intact. Lower the learning rate (now "
            f"{self.args.learning_rate}), or look for broken pictures in the data."
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        card = folder / REPOCARD_NAME
        written = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # The same arguments in a form that can be read by eye and loaded without unpickling.
            (folder / "training_args.bin").unlink(missing_ok=True)
            if self._base_fingerprint is not None:
                # PEFT's placeholder; the finished adapter gets a card that says something.
                card.unlink(missing_ok=True)
                if written is not None:
                    card.write_bytes(written)
                core = unwrap_model(self.accelerator.unwrap_model(self.model))
                base = (core.config.name_or_path, self._base_fingerprint, precision(core), self._base_settings)
                write_fingerprint(folder, *base)
            (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")
