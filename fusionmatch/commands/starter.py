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
"""`fusionmatch starter OUT`."""

from dataclasses import dataclass, field

from ..starter import build_starter
from .arguments import CommandParser


@dataclass
class StarterArguments:
    """Where the base goes."""

    output_dir: str = field(metadata={"help": "Folder to write."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights that are new (heads, fusion branch)."})


def run(argv: list[str]) -> None:
    """Builds the starter base."""
    (args,) = CommandParser(StarterArguments, "starter", positional="output_dir").parse(argv)
    path = build_starter(args.output_dir, seed=args.seed)
    print(
        f"Base checkpoint in {path}: EfficientNet-Lite0 and all-MiniLM-L6-v2 (English), heads not trained yet.\n"
        f"Next: fusionmatch adapt --model_name_or_path {path} --catalogue products.csv"
    )
