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

"""Arguments that several commands share, and how a command line and a recipe become dataclasses."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from peft import LoraConfig
from transformers import HfArgumentParser

from ..catalogue import ConceptBank, Intake, add_unpaired_images, hide_pairs, read_catalogue, read_unpaired_texts
from ..configuration_fusionmatch import FusionMatchConfig
from ..hub.model_card import public_name
from ..modeling_fusionmatch import FusionMatchModel
from ..report.words import Words
from ..training import FusionMatchTrainingArguments, lora_config, unwrap_model
from ..training.adapters import FULL_TOWER_LEARNING_RATE, PRESETS, four_bit_config


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint or adapter: folder or Hub name. Without, the starter base is built and used."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    dtype: str = field(default="float32", metadata={"help": "Weights in float32, bfloat16, float16 or auto."})
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Configuration settings in place of the base's, as JSON: '{\"feature_dropout\": 0.3}'."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, ..."})

    def __post_init__(self) -> None:
        overrides = self.config_overrides
        self.overrides = (yaml.safe_load(overrides) if isinstance(overrides, str) else overrides) or {}
        if not isinstance(self.overrides, dict):
            raise ValueError(
                f"`--config_overrides` must be a mapping such as '{{\"feature_dropout\": 0.3}}', got {overrides}."
            )
        unknown = [name for name in self.overrides if not hasattr(FusionMatchConfig, name)]
        if unknown:
            raise ValueError(f"`--config_overrides` names {unknown}, which are no settings of `FusionMatchConfig`.")


@dataclass
class LoraArguments:
    """What is trained, and how the adapter is made."""

    preset: str = field(
        default="lora", metadata={"help": "; ".join(f"{name}: {what}" for name, what in PRESETS.items()) + "."}
    )
    lora_r: int = field(default=8, metadata={"help": "Rank of LoRA."})
    lora_alpha: int = field(default=16, metadata={"help": "Scaling of LoRA; the change is times lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the LoRA layers."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules of the towers that get LoRA; defaults to the preset's."},
    )
    use_rslora: bool = field(default=False, metadata={"help": "Scale by lora_alpha / sqrt(lora_r)."})
    freeze_vision_model: bool = field(default=False, metadata={"help": "Keep the vision tower as it is."})
    freeze_text_model: bool = field(default=False, metadata={"help": "Keep the text tower as it is."})

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"`--preset` must be one of {', '.join(PRESETS)}, got {self.preset!r}.")
        if self.preset == "fast":
            self.freeze_vision_model = self.freeze_text_model = True

    def settle(self, args: FusionMatchTrainingArguments) -> None:
        """Gives the training arguments what the preset asks for, where they say nothing."""
        if self.preset == "full" and args.tower_learning_rate is None:
            args.tower_learning_rate = FULL_TOWER_LEARNING_RATE

    def loading(self, args: FusionMatchTrainingArguments) -> dict[str, Any]:
        """
        How the preset wants the base to be loaded.

        Raises:
            `ValueError`: 4 bits without a GPU.
        """
        if self.preset != "qlora":
            return {}
        if args.use_cpu or not torch.accelerator.is_available():
            # On some CPUs the kernels of bitsandbytes cannot train again after an evaluation.
            raise ValueError("`--preset qlora` trains on a GPU, and there is none here. Use `--preset lora`.")
        return {"quantization_config": four_bit_config(torch.bfloat16 if args.bf16 else torch.float32)}

    def prepare(self, model: FusionMatchModel) -> LoraConfig | None:
        """The adapter to train; for `full` there is none, and what does not train is frozen."""
        frozen = {"vision": self.freeze_vision_model, "text": self.freeze_text_model}
        if self.preset == "full":
            for tower in frozen:
                getattr(unwrap_model(model), f"{tower}_model").requires_grad_(not frozen[tower])
            return None
        return lora_config(
            model,
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_target_modules,
            towers=tuple(tower for tower in frozen if not frozen[tower]),
            use_rslora=self.use_rslora,
            use_dora=self.preset == "dora",
        )


@dataclass
class DataArguments:
    """Which catalogue, and how it is read."""

    catalogue: str | None = field(
        default=None,
        metadata={
            "help": "CSV, TSV, Excel, JSONL or Parquet file, folder of pictures with metadata, or datasets name."
        },
    )
    train_file: list[str] | None = field(default=None, metadata={"help": "In place of catalogue: training file(s)."})
    validation_file: list[str] | None = field(default=None, metadata={"help": "Validation file(s)."})
    test_file: list[str] | None = field(default=None, metadata={"help": "Test file(s)."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the picture; guessed."})
    additional_images_column: str | None = field(default=None, metadata={"help": "Column of further pictures."})
    caption_column: list[str] | None = field(default=None, metadata={"help": "Column(s) of the text, joined."})
    group_column: str | None = field(default=None, metadata={"help": "Column of the product (group); guessed."})
    split_column: str | None = field(default=None, metadata={"help": "Column that says train, validation or test."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that picture paths start from."})
    download_images: bool = field(default=False, metadata={"help": "Download pictures that are named by URL."})
    image_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder that keeps downloaded pictures; in the cache of datasets by default."}
    )
    allowed_hosts: list[str] | None = field(
        default=None,
        metadata={"help": "Hosts to download from though their address is private or their port is unusual."},
    )
    validation_size: float = field(default=0.1, metadata={"help": "Share of the products for validation."})
    test_size: float = field(default=0.2, metadata={"help": "Share of the products held out for the report."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the split; same seed, same split."})
    max_samples: int | None = field(default=None, metadata={"help": "Read only so many rows."})

    def __post_init__(self) -> None:
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        self.files = {split: paths for split, paths in files.items() if paths}
        if bool(self.files) == (self.catalogue is not None):
            raise ValueError(
                "Name the catalogue: either `--catalogue PATH`, or `--train_file`, `--validation_file`, `--test_file`."
            )

    def read(self) -> Intake:
        """Reads the catalogue that the arguments name."""
        return read_catalogue(
            self.files or self.catalogue,
            image_column=self.image_column,
            additional_images_column=self.additional_images_column,
            caption_column=self.caption_column,
            group_column=self.group_column,
            split_column=self.split_column,
            image_root=self.image_root,
            max_samples=self.max_samples,
            download_images=self.download_images,
            image_cache_dir=self.image_cache_dir,
            allowed_hosts=self.allowed_hosts or (),
        )

    def split(self, intake: Intake) -> datasets.DatasetDict:
        """Divides what was read."""
        return intake.split(self.validation_size, self.test_size, self.split_seed)

    @property
    def name(self) -> str:
        """The catalogue's name for titles: a Hub name, or the names of files without where they lie."""
        paths = [self.catalogue] if self.catalogue else [path for paths in self.files.values() for path in paths]
        return ", ".join(dict.fromkeys(map(public_name, paths)))


@dataclass
class FitDataArguments(DataArguments):
    """Which catalogue a model is fitted to, and what is known of it."""

    concepts_file: str | None = field(
        default=None,
        metadata={"help": "The base's concepts (of fusionmatch concepts): what rows say of them is learnt from."},
    )
    unpaired_images: str | None = field(
        default=None, metadata={"help": "Folder of pictures that nobody has matched yet; learnt from with the texts."}
    )
    unpaired_texts: str | None = field(
        default=None, metadata={"help": "Text file, one a line, of texts that nobody has matched yet."}
    )
    labels: int | None = field(
        default=None,
        metadata={"help": "Experiment: so many training pictures keep their texts; all others count as unmatched."},
    )
    report_language: str = field(default="en", metadata={"help": "Language of report.html: en or ja."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.unpaired_images is None) != (self.unpaired_texts is None):
            raise ValueError("Unpaired pictures are learnt from together with unpaired texts, so name both.")
        Words(self.report_language)  # an unknown language is an error now, not after the training
        if self.labels is not None and self.unpaired_images is not None:
            raise ValueError("`--labels` takes pairs of the catalogue apart itself; leave the unpaired ones out.")

    def split(self, intake: Intake) -> datasets.DatasetDict:
        """Divides what was read; rows get the concepts that they name, where a file of concepts is given."""
        splits = super().split(intake)
        if self.concepts_file is None:
            return splits
        bank = ConceptBank.load(self.concepts_file)
        return datasets.DatasetDict({name: bank.label(split) for name, split in splits.items()})

    def take_apart(self, splits: datasets.DatasetDict) -> tuple[datasets.DatasetDict, datasets.Dataset | None]:
        """The splits with unpaired pictures in `train`, and the unpaired texts, where there are any."""
        if "train" not in splits:
            return splits, None
        if self.labels is not None:
            train, texts = hide_pairs(splits["train"], self.labels, self.split_seed)
        elif self.unpaired_images is not None and self.unpaired_texts is not None:
            held_out = [split for name, split in splits.items() if name != "train"]
            train = add_unpaired_images(splits["train"], self.unpaired_images, held_out)
            texts = read_unpaired_texts(self.unpaired_texts, held_out)
        else:
            return splits, None
        return datasets.DatasetDict(splits | {"train": train}), texts


class CommandParser(HfArgumentParser):
    """[`~transformers.HfArgumentParser`] with `--config recipe.yaml` as TRL has it; unknown keys are errors."""

    def __init__(self, dataclass_types: Any, command: str, positional: str | None = None) -> None:
        super().__init__(dataclass_types, prog=f"fusionmatch {command}", allow_abbrev=False)
        self.add_argument("--config", metavar="RECIPE.yaml", help="YAML file of options; the command line wins.")
        self.positional = positional
        if positional:
            self.usage = f"fusionmatch {command} {positional.upper()} [options]"

    def parse(self, argv: list[str]) -> tuple[Any, ...]:
        """
        The dataclasses, filled from the recipe and the command line.

        Raises:
            `ValueError`: the recipe has keys that no option bears.
        """
        if self.positional and argv and not argv[0].startswith("-"):
            argv = [f"--{self.positional}", *argv]
        if "--config" in argv[:-1]:
            self.set_defaults(**self._recipe(Path(argv[argv.index("--config") + 1])))
        namespace = self.parse_args(argv)
        del namespace.config
        values = vars(namespace)
        return tuple(
            kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.init and f.name in values})
            for kind in self.dataclass_types
        )

    def _recipe(self, path: Path) -> dict[str, Any]:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(recipe, dict):
            raise ValueError(f"The recipe {path} must be a mapping of options to values, got {type(recipe).__name__}.")
        known = {action.dest for action in self._actions}
        unknown = sorted(set(recipe) - known)
        if unknown:
            raise ValueError(f"The recipe {path} has unknown keys: {', '.join(unknown)}. See {self.prog} --help.")
        for action in self._actions:
            if action.dest in recipe:
                action.required = False
        # YAML reads 1e-3 as text; argparse gives text defaults the option's type, so they go in as text.
        return {
            key: str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            for key, value in recipe.items()
        }
