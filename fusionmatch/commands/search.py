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
"""`fusionmatch search`."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from ..search import CatalogueIndex
from .arguments import CommandParser, DataArguments, ModelArguments
from .models import CalibrationArguments, load_model


@dataclass
class SearchArguments:
    """What is looked for."""

    query: list[str] | None = field(default=None, metadata={"help": "Text(s) to look for."})
    image: list[str] | None = field(default=None, metadata={"help": "Picture file(s) to look for."})
    top_k: int = field(default=5, metadata={"help": "Products shown for each query."})
    ranking_top_k: int = field(
        default=20, metadata={"help": "Pictures that a ranking stage, where there is one, looks at; 0 for none."}
    )
    precision: float | None = field(
        default=None,
        metadata={"help": "Say that a text is not carried where no hit is sure enough for it (0.8, 0.9, 0.95, 0.99)."},
    )
    index_dir: str | None = field(
        default=None, metadata={"help": "Folder of the embedded catalogue: used if it is there, else written."}
    )
    batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    json: bool = field(default=False, metadata={"help": "Print the hits as JSON, one query a line."})


def run(argv: list[str]) -> None:
    """Searches a catalogue by text and by picture."""
    parser = CommandParser((ModelArguments, DataArguments, CalibrationArguments, SearchArguments), "search")
    model_args, data_args, calibration_args, args = parser.parse(argv)
    queries = [(text, text) for text in args.query or []]
    for path in args.image or []:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no picture {path}.")
        with Image.open(path) as image:
            queries.append((path, image.convert("RGB")))
    if not queries:
        raise ValueError("Say what to look for: `--query TEXT` or `--image FILE`.")
    model, processor = load_model(model_args)
    if args.index_dir and (Path(args.index_dir) / "index.json").is_file():
        index = CatalogueIndex.from_pretrained(args.index_dir, model, processor)
    else:
        index = CatalogueIndex.build(
            model, processor, data_args.read().dataset, args.batch_size, disable_tqdm=args.json
        )
        if args.index_dir:
            index.save_pretrained(args.index_dir)
    index.calibration = calibration_args.load(model_args, model).get("t2i")
    threshold = None
    if args.precision is not None:
        if index.calibration is None:
            raise ValueError(
                "`--precision` needs a calibration in the model's folder (or in `--calibration_dir`); `fusionmatch "
                "calibrate --model_name_or_path MODEL --catalogue ...` makes one."
            )
        threshold = index.calibration.threshold(args.precision)
    for name, query in queries:
        hits = index.search(query, args.top_k, args.ranking_top_k)
        # Nothing is known of how sure a picture's hits are.
        carried = None
        if args.precision is not None and isinstance(query, str):
            # Unknown where a ranking stage put another product first than the similarities that were calibrated.
            sure = hits[0].probability
            carried = False if threshold is None else None if sure is None else sure >= threshold
        if args.json:
            found = {"query": name, "hits": [asdict(hit) for hit in hits]}
            print(json.dumps(found | ({} if carried is None else {"carried": carried}), ensure_ascii=False))
            continue
        print(f"\n{name}")
        if carried is False:
            print(f"  Not carried: nothing is sure enough for a precision of {args.precision:.0%}. Nearest:")
        for hit in hits:
            text = hit.text if len(hit.text) <= 70 else hit.text[:69] + "…"
            sure = "" if hit.probability is None else f"  {hit.probability:4.0%}"
            match = "" if hit.match is None else f"  match {hit.match:.0%}"
            print(f"  {hit.rank:>2}. {hit.score:5.3f}{sure}{match}  {hit.product}  {hit.image_id}  {text}")
