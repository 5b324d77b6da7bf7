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
"""`fusionmatch explain`."""

from dataclasses import dataclass, field

from ..evaluation.explanation import explain
from ..evaluation.explanation_figure import draw_explanations
from ..evaluation.retrieval import embed_catalogue
from ..evaluation.searches import hits_and_misses, text_searches
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import load_model


@dataclass
class ExplainArguments:
    """What is drawn."""

    output_file: str = field(default="explanation.png", metadata={"help": "Picture file to write: png, pdf or svg."})
    split: str = field(default="test", metadata={"help": "Split whose texts are the queries."})
    num_examples: int = field(default=3, metadata={"help": "Hits shown, and as many misses."})
    batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    disable_tqdm: bool = field(default=False, metadata={"help": "No progress bars."})


def run(argv: list[str]) -> None:
    """Shows which levels, heads, places, words and concepts decided for some hits and misses."""
    model_args, data_args, args = CommandParser((ModelArguments, DataArguments, ExplainArguments), "explain").parse(
        argv
    )
    if args.num_examples < 1:
        raise ValueError(f"`--num_examples` must be at least 1, got {args.num_examples}.")
    splits = data_args.split(data_args.read())
    if args.split not in splits:
        raise ValueError(f"There is no split {args.split!r}; there are {', '.join(splits)}.")
    dataset = splits[args.split]
    model, processor = load_model(model_args)
    found = embed_catalogue(model, processor, dataset, args.batch_size, args.disable_tqdm)
    hits, misses = hits_and_misses(text_searches(found, found, top_k=1), args.num_examples)
    examples = []
    for search in [*hits, *misses]:
        # Of a miss: why the picture that came first did.
        row = search.found[0]
        image = dataset[row]["image"]
        heading = "hit" if search.rank_after == 1 else f"miss: found this, the right one is at {search.rank_after}"
        reading = explain(model, processor, image, search.text)
        examples.append((f"{heading} ({found.image_products[row]})", image, search.text, reading))
        concepts = ", ".join(word for word, _ in reading.image.concepts[:3])
        print(
            f"{heading:<50} cosine {reading.cosine:.2f} (plain paths {reading.plain_cosine:.2f})"
            f"{'  sees: ' + concepts if concepts else ''}  “{search.text[:60]}”"
        )
    parts = [
        value for *_, e in examples for side in (e.image, e.text) for value in (*side.levels.values(), *side.heads)
    ]
    if max(map(abs, parts)) < 0.01:
        print(
            f"No level or head is worth more than {max(map(abs, parts)):.1g} of a cosine: this model's plain path "
            "decides alone, its gates are all but closed."
        )
    path = draw_explanations(
        args.output_file, examples, f"{len(hits)} hits and {len(misses)} misses of {data_args.name}"
    )
    print(f"Drawn in {path}")
