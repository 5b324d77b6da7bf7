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
"""`fusionmatch sample-shop OUT`."""

import json
from dataclasses import dataclass, field

from ..catalogue.sample_shop import write_sample_shop
from .arguments import CommandParser


@dataclass
class SampleShopArguments:
    """Which shop."""

    output_dir: str = field(metadata={"help": "Folder to write."})
    num_products: int = field(default=320, metadata={"help": "Number of products."})
    seed: int = field(default=0, metadata={"help": "Another seed gives another shop."})
    fault_rates: dict | str | None = field(
        default=None,
        metadata={"help": "Share of the rows with each fault, as JSON: '{\"truncated_image\": 0.02}'."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.fault_rates, str):
            self.fault_rates = json.loads(self.fault_rates)


def run(argv: list[str]) -> None:
    """Writes the sample shop."""
    (args,) = CommandParser(SampleShopArguments, "sample-shop", positional="output_dir").parse(argv)
    path = write_sample_shop(
        args.output_dir, num_products=args.num_products, seed=args.seed, fault_rates=args.fault_rates
    )
    print(
        f"A shop of {args.num_products} products in {path}, pictures beside it, a few seeded faults listed in "
        f"{path.parent / 'faults.json'}.\nNext: fusionmatch adapt --catalogue {path}"
    )
