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
"""`fusionmatch push PATH USER/NAME`."""

from dataclasses import dataclass, field

from ..hub.push import REPORT_FILE, push_folder
from .arguments import CommandParser


@dataclass
class PushArguments:
    """What is sent where."""

    path: str = field(metadata={"help": "Folder of the checkpoint or adapter."})
    repo_id: str = field(metadata={"help": "Name on the Hub: user/name or organisation/name."})
    base_model: str | None = field(
        default=None, metadata={"help": "Hub name of an adapter's base, where it was made on a folder."}
    )
    private: bool | None = field(
        default=None,
        metadata={"help": "Make a new repository private, or public; by default that of an adapter is private."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch; made if it is not there."})
    commit_message: str | None = field(default=None, metadata={"help": "First line of the commit."})
    token: str | None = field(
        default=None, metadata={"help": "Token; defaults to HF_TOKEN or that of `hf auth login`."}
    )
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request in place of a commit."})
    include_report: bool = field(
        default=False, metadata={"help": f"Send {REPORT_FILE} too, which shows texts and pictures of the catalogue."}
    )
    include_code: bool = field(
        default=False,
        metadata={"help": "Send the model's own classes too, for `trust_remote_code=True` without FusionMatch."},
    )


def run(argv: list[str]) -> None:
    """Pushes a folder, and says what went and what stayed."""
    parser = CommandParser(PushArguments, "push")
    parser.usage = "fusionmatch push PATH USER/NAME [options]"
    # Both come without the names of their options, as with `hf upload`.
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    named = [word for pair in zip(("--path", "--repo_id"), argv[:count], strict=False) for word in pair]
    (args,) = parser.parse([*named, *argv[min(count, 2) :]])
    settings = vars(args)
    pushed = push_folder(settings.pop("path"), settings.pop("repo_id"), **settings)
    print("\n".join(f"  {name:<40} {size / 1e3:>12,.1f} kB" for name, size in pushed.files.items()))
    if pushed.left_out:
        print("Left out:")
        print("\n".join(f"  {name:<40} {why}" for name, why in pushed.left_out.items()))
    seen = "private" if pushed.private else "public"
    print(
        f"{pushed.repo_id} ({seen}) has it in one commit: {pushed.url}\n"
        f'Load it with `load_pretrained("{pushed.repo_id}")` or `--model_name_or_path {pushed.repo_id}`.'
    )
