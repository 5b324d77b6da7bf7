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
"""`fusionmatch concepts CATALOGUE`."""

from dataclasses import dataclass, field
from pathlib import Path

from ..catalogue import ConceptBank, build_concepts
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_base


@dataclass
class ConceptArguments:
    """Which concepts, and where they go."""

    output_file: str = field(
        default="concepts.json", metadata={"help": "File of the concepts: used if it is there, else written."}
    )
    num_concepts: int = field(default=300, metadata={"help": "Most concepts."})
    attribute_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns such as colour and material, whose values are concepts as they are."}
    )
    language: str = field(default="en", metadata={"help": "Language of the texts: en, de, ja, or none."})
    min_count: int = field(default=2, metadata={"help": "Rows that a concept stands in at least."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for a copy of --model_name_or_path that has the concepts."}
    )


def run(argv: list[str]) -> None:
    """Finds the concepts of a catalogue's training split, and gives them to a base."""
    parser = CommandParser((ModelArguments, DataArguments, ConceptArguments), "concepts", positional="catalogue")
    model_args, data_args, args = parser.parse(argv)
    if args.output_dir and Path(args.output_dir).exists() and any(Path(args.output_dir).iterdir()):
        raise ValueError(f"The folder {args.output_dir} is not empty. Name another `--output_dir`.")
    path = Path(args.output_file)
    if path.is_file():
        bank = ConceptBank.load(path)
        print(f"{len(bank)} concepts read from {path}, which is there already:")
    else:
        # Words of held-out products are no knowledge to be measured with.
        dataset = data_args.split(data_args.read())["train"]
        bank = build_concepts(
            dataset,
            args.num_concepts,
            attribute_columns=args.attribute_columns or (),
            language=None if args.language == "none" else args.language,
            min_count=args.min_count,
        )
        bank.save(path)
        print(f"{len(bank)} concepts of {bank.documents:,} rows of the training split in {path}:")
    for kind in dict.fromkeys(bank.kinds):
        words = [word for word, own in zip(bank.words, bank.kinds, strict=True) if own == kind]
        more = f", ... ({len(words)})" if len(words) > 12 else ""
        print(f"  {kind:<12} {', '.join(words[:12])}{more}")
    if not args.output_dir:
        print(
            "Strike out what says nothing of how a product looks. The same command with --model_name_or_path BASE\n"
            "and --output_dir NEW_BASE then takes the file as it is and puts the concepts into a base."
        )
        return
    from ..training.concepts import attach_concepts

    model, processor = load_base(model_args, ranking_stage=False)
    attach_concepts(model, processor, bank).save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    print(
        f"{args.output_dir} is the base with these concepts, not trained yet. Next: fusionmatch train "
        f"--model_name_or_path {args.output_dir} --concepts_file {path} --loss_components fused concept ..."
    )
