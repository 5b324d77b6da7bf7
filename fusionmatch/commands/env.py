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
"""`fusionmatch env`."""

import importlib.metadata
import os
import platform

import torch

from .. import __version__


PACKAGES = (
    "transformers",
    "torch",
    "accelerate",
    "datasets",
    "peft",
    "evaluate",
    "huggingface_hub",
    "safetensors",
    "tokenizers",
    "numpy",
    "pillow",
    "sentence-transformers",
    "torchvision",
)


def run(argv: list[str]) -> None:
    """Prints versions and machine."""
    rows = {"fusionmatch": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            rows[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["cpu threads"] = str(torch.get_num_threads())
    rows["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "not set")
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))
