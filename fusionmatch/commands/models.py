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

import os
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from torch import nn

from .. import __version__
from ..loading import load_pretrained
from ..starter import build_starter
from .arguments import ModelArguments


def load_model(args: ModelArguments) -> tuple[nn.Module, Any]:
    """The named checkpoint or adapter and its processor; without a name the starter base, built once and kept."""
    name = args.model_name_or_path
    if name is None:
        name = str(Path(os.environ.get("FUSIONMATCH_HOME", Path(HF_HOME) / "fusionmatch")) / f"starter-{__version__}")
        if not (Path(name) / "config.json").is_file():
            print(f"No --model_name_or_path given: building the starter base in {name}")
            build_starter(name)
    kwargs = {"dtype": args.dtype, "revision": args.model_revision, "attn_implementation": args.attn_implementation}
    kwargs |= args.overrides
    return load_pretrained(name, **{key: value for key, value in kwargs.items() if value is not None})
