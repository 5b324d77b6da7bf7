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
"""`fusionmatch adapter list|merge|compare PATH...`."""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.constants import REPOCARD_NAME

from ..evaluation.queries import QueryResults, compare
from ..hub import write_merged_card
from ..loading import load_pretrained, precision
from ..repository import ADAPTER_FILE, FINGERPRINT_FILE, fetch
from ..training.adapters import peft_base
from ..training.pipeline import METRICS_FILE, QUERIES_FILE, read_json
from .arguments import CommandParser


ACTIONS = ("list", "merge", "compare")
# What is said of an adapter beside its weights.
_ABOUT = (REPOCARD_NAME, FINGERPRINT_FILE)


@dataclass
class AdapterArguments:
    """What is done with which adapters."""

    paths: list[str] = field(
        metadata={"help": "Adapters; for list and compare also folders that hold some, for merge a Hub name."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "merge: folder for the merged checkpoint."})
    revision: str | None = field(default=None, metadata={"help": "merge: branch, tag or commit of it on the Hub."})


def run(argv: list[str]) -> None:
    """Lists adapters, merges one into its base, or puts what they reached side by side."""
    action, *rest = argv or [""]
    if action not in ACTIONS and action not in ("-h", "--help"):
        raise ValueError(f"Say what to do: `fusionmatch adapter {'|'.join(ACTIONS)} PATH...`, got {action!r}.")
    # The paths come without the name of their option, as they do with `ls`.
    count = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    paths = ["--paths", *rest[:count]] if count else []
    parser = CommandParser(AdapterArguments, "adapter")
    parser.usage = f"fusionmatch adapter {'|'.join(ACTIONS)} PATH... [options]"
    (args,) = parser.parse(["--help"] if action not in ACTIONS else [*paths, *rest[count:]])
    # What is merged may lie on the Hub.
    elsewhere = [path for path in args.paths if action == "merge" and not Path(path).exists()]
    folders = [folder for path in args.paths if path not in elsewhere for folder in _adapters(Path(path))]
    if action == "merge":
        _merge([*elsewhere, *folders], args.output_dir, args.revision)
    else:
        (_list if action == "list" else _compare)(folders)


def _adapters(path: Path) -> list[Path]:
    """The adapter in a folder, or those in its sub-folders; checkpoints of a training do not count."""
    found = [path] if (path / ADAPTER_FILE).is_file() else sorted(p.parent for p in path.glob(f"*/{ADAPTER_FILE}"))
    found = [folder for folder in found if folder == path or not folder.name.startswith("checkpoint-")]
    if not found:
        raise ValueError(f"{path} is no adapter and holds none: there is no `{ADAPTER_FILE}` in it.")
    return found


def _list(folders: list[Path]) -> None:
    print(f"{'adapter':<28} {'kind':<10} {'rank':>4} {'MB':>7} {'RSUM':>7}  {'base fingerprint':<16}  base")
    for folder in folders:
        config, note = read_json(folder / ADAPTER_FILE), read_json(folder / FINGERPRINT_FILE)
        size = sum(path.stat().st_size for path in folder.glob("adapter_model.*")) / 1e6
        rsum = read_json(folder / METRICS_FILE).get("after", {}).get("rsum")
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type", "?")
        print(
            f"{folder.name:<28} {kind:<10} {config.get('r', '-'):>4} {size:>7.1f} "
            f"{'-' if rsum is None else f'{rsum:.1f}':>7}  {note.get('fingerprint', '-')[:16]:<16}  "
            f"{config.get('base_model_name_or_path', '-')}"
        )


def _merge(names: list[str | Path], output_dir: str | None, revision: str | None) -> None:
    if len(names) != 1 or output_dir is None:
        raise ValueError(
            f"`merge` takes one adapter and `--output_dir`, got {len(names)} and {output_dir}. Two adapters of one "
            "base stay two: each is loaded by its own folder."
        )
    (name,) = names
    if Path(output_dir).exists() and any(Path(output_dir).iterdir()):
        raise ValueError(f"The folder {output_dir} is not empty. Name another `--output_dir`.")
    model, processor = load_pretrained(name, revision=revision)
    if peft_base(model) is model:
        raise ValueError(f"{name} is a checkpoint and no adapter: there is nothing to merge.")
    base = peft_base(model)
    adapter, made_on, kept_in = fetch(name, _ABOUT, revision=revision), base.config.name_or_path, precision(base)
    model.merge_and_unload(progressbar=True).save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    # Measured on a base in four bits, say, the figures are of other weights.
    measured = read_json(adapter / FINGERPRINT_FILE).get("dtype") == kept_in
    write_merged_card(output_dir, name, made_on, adapter / REPOCARD_NAME if measured else None)
    print(
        f"{output_dir} is the base with {name} merged in: a checkpoint of its own, to search, to train on or to "
        "adapt further."
    )


def _compare(folders: list[Path]) -> None:
    # By the whole path: folders of several runs often bear one name.
    runs = {str(folder): read_json(folder / METRICS_FILE) for folder in folders}
    missing = [name for name, run in runs.items() if not run]
    if missing:
        raise ValueError(f"No `{METRICS_FILE}` in {', '.join(missing)}; `fusionmatch adapt` writes it.")
    notes = {name: read_json(Path(name) / FINGERPRINT_FILE) for name in runs}
    # One base has another fingerprint in another precision.
    bases = {(note.get("dtype"), note["fingerprint"]) for note in notes.values() if "fingerprint" in note}
    if len(bases) > len({dtype for dtype, _ in bases}):
        found = ", ".join(f"{name}: {note.get('fingerprint', '-')[:16]}" for name, note in notes.items())
        raise ValueError(
            f"These adapters were made on bases with different fingerprints ({found}), so there is no one *before*. "
            "Compare adapters of one base, or two models of any kind with `fusionmatch evaluate --baseline`."
        )
    tested = {(run["pictures"]["test"], run["products"]["test"]) for run in runs.values()}
    if len(tested) > 1:
        print("These adapters were tested on splits of different sizes: their numbers say nothing of each other.")
    first = next(iter(runs.values()))
    names = [name for name in first["after"] if "recall@" in name and "chance" not in name] + ["rsum"]
    width = max(12, *(len(name) for name in runs))
    print(f"{'':<16}" + "".join(f"{name:>{width + 2}}" for name in ("before", *runs)))
    for name in names:
        values = [first["before"][name], *(run["after"][name] for run in runs.values())]
        print(f"{name:<16}" + "".join(f"{value:>{width + 2}.1f}" for value in values))
    for label, key in (("trained weights", "trainable_parameters"), ("seconds", "training_seconds")):
        print(f"{label:<16}{'':>{width + 2}}" + "".join(f"{run[key]:>{width + 2},.0f}" for run in runs.values()))
    kept = {name: Path(name) / QUERIES_FILE for name in runs}
    start, *others = [name for name, path in kept.items() if path.is_file()] or [""]
    for name in others:
        queries = [QueryResults.load(kept[each]) for each in (name, start)]
        try:
            print(f"{name}: {compare(queries[:1], queries[1:])['rsum'].sentence('RSUM', start)}")
        except ValueError as error:
            print(f"{name}: not compared with {start}. {error}")
