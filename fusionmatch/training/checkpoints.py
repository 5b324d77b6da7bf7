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
"""Checkpoints of a training: which of them are whole, and whether there is room for more."""

import itertools
import json
import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Trainer writes it last of all.
STATE_FILE = "trainer_state.json"
# Begins the name of what was a checkpoint of a training that was left.
ASIDE = "left"
# Beside what is counted: logs, the report, pictures in it.
SPARE_BYTES = 50 * 2**20


def what_is_broken(checkpoint: str | Path) -> str | None:
    """Why a checkpoint cannot be gone on from, as after a kill in the middle of writing it; `None` for a whole one."""
    checkpoint = Path(checkpoint)
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            # Opening compares the size with the header: a file that was cut short is noticed.
            with safe_open(path, "pt"):
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    # What torch writes is a zip file, whose directory is at its end.
    short = [path.name for path in sorted(checkpoint.glob("*.pt*")) if not zipfile.is_zipfile(path)]
    if short:
        return f"{', '.join(short)} was cut short"
    folders = [path.name for path in checkpoint.iterdir() if path.is_dir()]
    if not folders and (checkpoint / "scheduler.pt").exists() and not any(checkpoint.glob("optimizer.*")):
        return "the state of the optimizer is missing"
    # Weights in one file or several; folders are those of FSDP and DeepSpeed.
    names = [*folders, *(path.name for path in checkpoint.iterdir() if path.suffix in (".safetensors", ".bin"))]
    weights = ("model", "adapter_model", "pytorch_model", "global_step")
    return None if any(name.startswith(weights) for name in names) else "it holds no weights"


def _steps(folder: str | Path) -> list[tuple[int, Path]]:
    """Steps and folders of all checkpoints in an output folder, whole or not."""
    paths = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    numbers = [path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in paths]
    return sorted((int(number), path) for number, path in zip(numbers, paths, strict=True) if number.isdigit())


def set_aside_later(checkpoint: str | Path) -> None:
    """
    Renames the checkpoints of later steps beside one that a training goes back to: they are those of another training,
    which would be taken for the newest.
    """
    folder = Path(checkpoint).resolve().parent
    own = next((step for step, path in _steps(folder) if path.resolve() == Path(checkpoint).resolve()), math.inf)
    for step, path in _steps(folder):
        if step > own:
            aside = next(
                place for i in itertools.count() if not (place := folder / f"{ASIDE}{i or ''}-{path.name}").exists()
            )
            path.rename(aside)
            logger.warning(f"{path.name} is of a training that is not gone on with: it is {aside} now. Remove it.")


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in an output folder that is whole; those that are not are named in a warning."""
    for _, path in reversed(_steps(folder)):
        reason = what_is_broken(path)
        if reason is None:
            return str(path)
        logger.warning_once(f"{path} is not whole and is left out ({reason}).")
    return None


@contextmanager
def words_for_a_full_disk(folder: str | Path, what: str = "the checkpoint") -> Iterator[None]:
    """
    Says so where something cannot be written because the disk is full: torch and safetensors have errors of their own
    for it.

    Args:
        folder (`str` or `Path`): Where it is written.
        what (`str`, *optional*, defaults to `"the checkpoint"`): What is written, for the message.

    Raises:
        `OSError`: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free
        if free > SPARE_BYTES:
            raise
        raise OSError(
            f"The disk of {folder} is full ({free / 2**20:.0f} MiB left), and {what} is not whole. Make room and "
            "start the same command again: it goes on from what is whole."
        ) from error


def check_room(folder: str | Path, needed: int, what: str) -> None:
    """
    Checks that there is room on the disk.

    Args:
        folder (`str` or `Path`): Where it will be written.
        needed (`int`): Bytes.
        what (`str`): What needs them, for the message.

    Raises:
        `OSError`: there is not enough.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{what} need about {needed / 2**20:,.0f} MiB, and {folder} has {free / 2**20:,.0f} MiB left. Make room, "
            "or name a folder on another disk."
        )
