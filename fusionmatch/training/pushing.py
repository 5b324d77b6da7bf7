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
"""What a training sends to the Hub: what [`~fusionmatch.hub.push_folder`] would send, and no more."""

import os
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub.constants import REPOCARD_NAME
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from ..hub.push import STATE_PATTERNS, PushedFolder, check_base, push_folder, refuse_public
from ..loading import base_revision, precision
from ..repository import worded_hub_errors
from .adapters import peft_base
from .arguments import FusionMatchTrainingArguments


logger = logging.get_logger(__name__)


def check_base_on_hub(
    args: FusionMatchTrainingArguments, core: nn.Module, base_fingerprint: str, settings: dict[str, Any]
) -> str | None:
    """
    Checks that an adapter which is pushed can say where on the Hub its base is, and that it is the base.

    Args:
        args ([`FusionMatchTrainingArguments`]):
            Arguments, `hub_base_model` among them.
        core ([`FusionMatchModel`]):
            The base.
        base_fingerprint (`str`):
            Its [`~fusionmatch.loading.fingerprint`].
        settings (`dict[str, Any]`):
            Its [`~fusionmatch.loading.changed_settings`].

    Returns:
        `str`: the commit of the base; `None` on all processes but the first, which push nothing.

    Raises:
        `ValueError`: the base is a folder, and no base on the Hub is named, or one with other weights.
        `OSError`: the Hub does not give it; the message says why and what to do.
    """
    base = core.config.name_or_path
    if args.hub_base_model is None and Path(base).is_dir():
        raise ValueError(
            f"The base is the folder {base}, which nobody else has, so a pushed adapter could not say where its base "
            f"is. Push that one first (`fusionmatch push {base} USER/BASE`), then name it: "
            "`--hub_base_model USER/BASE`."
        )
    if args.process_index != 0:
        return None
    note = {"fingerprint": base_fingerprint, "dtype": precision(core), "settings": settings}
    if args.hub_base_model is not None:
        return check_base(args.hub_base_model, note, args.hub_token)
    return check_base(base, note, args.hub_token, base_revision(core.config))


class PushingTrainer(Trainer):
    """
    [`~transformers.Trainer`] whose pushes are those of [`~fusionmatch.hub.push_folder`]: the folders of a training
    hold texts and pictures of the catalogue, and pickles, and Trainer would send them all.

    > With `hub_strategy` `checkpoint` or `all_checkpoints`, and only then, the state of the training goes as well, of
    > optimizer, schedule and random numbers, which transformers pickles. It lies in the sub-folder `last-checkpoint`,
    > or in one a checkpoint. Loading never looks into these; to go on from one is to trust who wrote it.
    > `training_args.json` and paths of this machine stay.
    """

    hub_base_revision: str | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Makes the repository; that of an adapter is private unless `hub_private_repo` says otherwise.

        Raises:
            `OSError`: the Hub refuses it; the message says why and what to do.
            `ValueError`: it is public already and was asked to be private, which is said before the training.
        """
        asked = self.args.hub_private_repo if private is None else private
        made = True if asked is None and peft_base(self.model) is not self.model else asked
        with worded_hub_errors(self.args.hub_model_id or Path(self.args.output_dir).absolute().name):
            super().init_hf_repo(token, made)
            if asked and self.is_world_process_zero():
                there = hf_api().repo_info(self.hub_model_id, token=token or self.args.hub_token)
                if not there.private:
                    refuse_public(self.hub_model_id)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> PushedFolder | Future | None:
        """
        Saves the model and pushes the output folder, as [`~transformers.Trainer.push_to_hub`] does. All
        processes have to call it.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                First line of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to wait for the end.
            token (`str`, *optional*):
                Token; defaults to `args.hub_token`.
            revision (`str`, *optional*):
                Branch; defaults to `args.hub_revision`.
            private (`bool`, *optional*):
                Whether a new repository is made private; `True` is an error where it is public already. Defaults to
                `args.hub_private_repo`.
            kwargs:
                Passed to `create_model_card`, where the folder has no card yet.

        Returns:
            [`~fusionmatch.hub.PushedFolder`], or a `Future` of it with `blocking=False`; `None` on all processes but
            the first.

        Raises:
            `OSError`: the Hub refuses it; the message says why and what to do.
            `ValueError`: the repository is public and should be private.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._push_output_dir(commit_message, blocking, token, revision, private, **kwargs)

    def push_saved(self, commit_message: str | None = "End of training") -> PushedFolder | None:
        """
        Pushes the output folder as it is. Where saving is the work of all processes, as under FSDP, the first can do
        this alone.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                First line of the commit.

        Returns:
            [`~fusionmatch.hub.PushedFolder`]; `None` on all processes but the first.

        Raises:
            `OSError`: the Hub refuses it; the message says why and what to do.
        """
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo()
        return self._push_output_dir(commit_message)

    def _push_output_dir(
        self,
        message: str | None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> PushedFolder | Future:
        if not (Path(self.args.output_dir) / REPOCARD_NAME).is_file():
            self.create_model_card(**({"model_name": self.hub_model_id.split("/")[-1]} | kwargs))
        self._finish_current_push()
        push = partial(self._push, self.args.output_dir, message, token, revision, private)
        return push() if blocking else hf_api().run_as_future(push)

    def _push(
        self,
        folder: str,
        message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        resume_path: str | None = None,
    ) -> PushedFolder:
        return push_folder(
            folder,
            self.hub_model_id,
            base_model=self.args.hub_base_model if peft_base(self.model) is not self.model else None,
            base_revision=self.hub_base_revision,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=message,
            token=token or self.args.hub_token,
            resume_path=resume_path,
            just_saved=True,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        args, strategy = self.args, self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_step = args.save_strategy == SaveStrategy.STEPS
        where = f"step {self.state.global_step}" if by_step else f"epoch {int(self.state.epoch)}"
        message = f"Training in progress, {where}"
        resume_path = {
            HubStrategy.CHECKPOINT: "last-checkpoint",
            HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name,
        }.get(strategy)
        # The checkpoint may be deleted (`save_total_limit`) before its turn comes.
        kept = TemporaryDirectory(prefix=".push-", dir=args.output_dir)
        ignored = ignore_patterns(*STATE_PATTERNS) if resume_path is None else None
        copytree(checkpoint_folder, kept.name, ignore=ignored, copy_function=_link, dirs_exist_ok=True)
        job = hf_api().run_as_future(self._push_kept, kept, message, resume_path)
        job.add_done_callback(_say_if_failed)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _push_kept(self, kept: TemporaryDirectory, message: str, resume_path: str | None) -> PushedFolder:
        with kept as folder:
            # A whole checkpoint or adapter, with the processor.
            return self._push(folder, message, resume_path=resume_path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        copy2(source, target)


def _say_if_failed(job: Future) -> None:
    # A training is worth more than one of its pushes; the last one, at its end, is an error if it fails.
    if not job.cancelled() and job.exception() is not None:
        logger.warning(f"A push to the Hub failed, and the training goes on. {job.exception()}")
