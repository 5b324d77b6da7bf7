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
"""`fusionmatch report RUN...`: the page a decision is made on."""

from dataclasses import dataclass, field
from pathlib import Path

from ..report import Rollout, write_report
from ..report.rollout import write_template
from .arguments import CommandParser


@dataclass
class ReportArguments:
    """Which runs, in which language, and what is to be planned."""

    runs: list[str] = field(
        default_factory=list, metadata={"help": "Folders that fusionmatch adapt or train wrote; several are compared."}
    )
    out: str | None = field(
        default=None, metadata={"help": "Page to write; defaults to report.html in the first run."}
    )
    language: str = field(default="en", metadata={"help": "en or ja."})
    rollout_file: str | None = field(
        default=None,
        metadata={"help": "YAML file with the shop's own figures: plans the A/B test and says go or hold."},
    )
    rollout_template: str | None = field(
        default=None, metadata={"help": "Write an example of that file here, to be filled in."}
    )


def run(argv: list[str]) -> None:
    """Writes the page, or the file to fill in."""
    (args,) = CommandParser((ReportArguments,), "report", positional="runs").parse(argv)
    if args.rollout_template is not None:
        path = write_template(args.rollout_template)
        print(f"Fill in {path}, then: fusionmatch report RUN --rollout_file {path}")
        if not args.runs:
            return
    rollout = None if args.rollout_file is None else Rollout.load(args.rollout_file)
    path = args.out or (Path(args.runs[0]) / "report.html" if args.runs else "report.html")
    print(f"Written: {write_report(path, args.runs, args.language, rollout)}")
