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
"""`fusionmatch listings CATALOGUE`: pictures and texts that may not belong together, worst first, to go through."""

from dataclasses import dataclass, field

from ..evaluation.mismatches import own_texts, pair_probabilities, suspicious_listings, tower_vectors
from ..evaluation.retrieval import embed_catalogue
from ..report.listings import write_listings
from ..report.words import Words
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import CalibrationArguments, load_model


@dataclass
class ListingsArguments:
    """Where the page goes, and how much is on it."""

    output_dir: str = field(default="listings", metadata={"help": "Folder for listings.html and listings.csv."})
    language: str = field(default="en", metadata={"help": "Language of the page: en or ja."})
    most: int = field(default=100, metadata={"help": "Listings on the page; the table has all."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})

    def __post_init__(self) -> None:
        Words(self.language)  # an unknown language is an error now, not after all the pictures were looked at
        if self.most < 1:
            raise ValueError(f"`--most` must be at least 1, got {self.most}.")


def run(argv: list[str]) -> None:
    """Looks at every pair and writes the page."""
    arguments = (ModelArguments, DataArguments, CalibrationArguments, ListingsArguments)
    model_args, data_args, calibration_args, args = CommandParser(arguments, "listings", "catalogue").parse(argv)
    intake = data_args.read()
    model, processor = load_model(model_args)
    pairs, sure = calibration_args.load(model_args, model).get("pairs"), None
    if pairs is not None:
        found = embed_catalogue(model, processor, intake.dataset, disable_tqdm=args.disable_tqdm, ranking_top_k=0)
        sure = pair_probabilities(found, own_texts(found, intake.dataset), pairs)
    vectors = tower_vectors(model, processor, intake.dataset, disable_tqdm=args.disable_tqdm)
    listings = suspicious_listings(*vectors, list(intake.dataset["product"]), probabilities=sure)
    page, table = write_listings(
        args.output_dir, listings, intake, data_args.name, args.language, args.most, pairs and pairs.matched
    )
    swapped = sum(1 for listing in listings if listing.swapped_with is not None)
    print(
        f"{len(listings):,} of {len(intake.dataset):,} listings are worth a look, {swapped:,} of them perhaps swapped "
        f"with another one.\nPage: {page}\nTable: {table}"
    )
