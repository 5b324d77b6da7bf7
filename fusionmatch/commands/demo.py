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
"""`fusionmatch demo`: a page to try a catalogue's search on, and a folder of it for a Space."""

from dataclasses import dataclass, field

from ..app import CatalogueSearch, build_app, model_names, write_space
from ..app.page import launch_options
from ..report.words import Words
from .arguments import CommandParser, DataArguments


@dataclass
class DemoArguments:
    """What is searched with, and where the page is."""

    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"help": "Checkpoints and adapters to choose from; the first is shown first."}
    )
    title: str | None = field(
        default=None, metadata={"help": "Heading of the page; defaults to the catalogue's name."}
    )
    language: str = field(default="en", metadata={"help": "Language of the page: en or ja."})
    index_dir: str | None = field(
        default=None, metadata={"help": "Folder of the embedded catalogue: used if it is there, else written."}
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on; 0.0.0.0 lets other machines in, without a login."},
    )
    port: int = field(default=7860, metadata={"help": "Port to listen on."})
    space_dir: str | None = field(
        default=None,
        metadata={"help": "Write a folder that can be pushed as a Space here, with models and catalogue, and stop."},
    )

    def __post_init__(self) -> None:
        Words(self.language)  # an unknown language is an error now, not after the catalogue was read


def run(argv: list[str]) -> None:
    """Starts the page, or writes the folder."""
    data_args, args = CommandParser((DataArguments, DemoArguments), "demo", positional="catalogue").parse(argv)
    if not args.model_name_or_path:
        raise ValueError("Name what to search with: `--model_name_or_path CHECKPOINT_OR_ADAPTER ...`.")
    models = model_names(args.model_name_or_path)
    dataset = data_args.read().dataset
    title = args.title or data_args.name
    if args.space_dir is not None:
        folder = write_space(args.space_dir, models, dataset, title, args.language)
        print(
            f"Written: {folder}. Try it with `cd {folder} && python app.py`; push it with `hf upload USER/NAME "
            f"{folder} . --repo-type space`: whoever can open it sees the catalogue."
        )
        return
    search = CatalogueSearch(models, dataset, args.index_dir)
    app = build_app(search, title, args.language)
    search.index(next(iter(models)))
    app.launch(server_name=args.host, server_port=args.port, **launch_options())
