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
"""The model that a command works with."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub.constants import HF_HOME
from torch import nn

from .. import __version__
from ..evaluation.calibration import Calibrations, load_calibration
from ..loading import load_pretrained
from ..repository import SETTINGS_PATTERNS, fetch
from ..training.adapters import peft_base
from .arguments import ModelArguments


logger = logging.getLogger(__name__)


def load_model(args: ModelArguments, **loading: Any) -> tuple[nn.Module, Any]:
    """
    The named checkpoint or adapter and its processor; without a name the starter base, built once and kept. `loading`
    goes to [`~fusionmatch.loading.load_pretrained`].
    """
    name = args.model_name_or_path
    if name is None:
        name = str(Path(os.environ.get("FUSIONMATCH_HOME", Path(HF_HOME) / "fusionmatch")) / f"starter-{__version__}")
        with PartialState().main_process_first():
            if not (Path(name) / "config.json").is_file():
                print(f"No --model_name_or_path given: building the starter base in {name}", file=sys.stderr)
                _build_starter(name)
    kwargs = {"dtype": args.dtype, "revision": args.model_revision, "attn_implementation": args.attn_implementation}
    kwargs |= args.overrides | loading
    try:
        model, processor = load_pretrained(name, **{key: value for key, value in kwargs.items() if value is not None})
    except RuntimeError as error:
        if not args.overrides:
            raise
        raise ValueError(
            f"The weights in {name} do not fit `--config_overrides` {args.overrides}: sizes have to be those of the "
            "checkpoint, dropouts and the like may differ."
        ) from error
    return model.to(PartialState().device), processor


@dataclass
class CalibrationArguments:
    """Where probabilities come from."""

    calibration_dir: str | None = field(
        default=None, metadata={"help": "Folder of `calibration.json`; defaults to the model's own."}
    )

    def load(self, model_args: ModelArguments, model: nn.Module) -> Calibrations:
        """
        What `fusionmatch calibrate` wrote for a model; empty where there is none. What lies in the model's own folder
        but is of earlier weights is left out with a warning.

        Raises:
            `ValueError`: what lies in `calibration_dir` is of other weights.
        """
        if self.calibration_dir is not None:
            return load_calibration(self.calibration_dir, model)
        if model_args.model_name_or_path is None:
            return Calibrations()
        # Of a name on the Hub it came along with the settings.
        folder = fetch(model_args.model_name_or_path, SETTINGS_PATTERNS, revision=model_args.model_revision)
        try:
            return load_calibration(folder, model)
        except ValueError as error:
            logger.warning(f"There are no probabilities: {error}")
            return Calibrations()


def load_base(args: ModelArguments, **loading: Any) -> tuple[nn.Module, Any]:
    """
    [`load_model`] for a model that something is made on.

    Raises:
        `ValueError`: it is an adapter.
    """
    model, processor = load_model(args, **loading)
    if peft_base(model) is not model:
        revision = f" --revision {args.model_revision}" if args.model_revision else ""
        raise ValueError(
            f"`{args.model_name_or_path}` is an adapter. Merge it into its base first (`fusionmatch adapter merge "
            f"{args.model_name_or_path}{revision} --output_dir MERGED`), then go on from the merged checkpoint."
        )
    return model, processor


def _build_starter(folder: str) -> None:
    """Builds the starter in a process of its own: under a launcher, transformers writes from one rank only."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launcher}
    command = [sys.executable, "-m", "fusionmatch", "starter", folder]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if run.returncode != 0:
        raise ValueError(f"The starter base could not be built: {(run.stderr.strip().splitlines() or ['?'])[-1]}")
