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
"""Model cards, rendered from the templates in `fusionmatch.model_cards`; they never hold texts, pictures or paths."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import datasets
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from jinja2 import StrictUndefined, Template

from ..evaluation.queries import FEW, QueryResults, columns_to_divide_by, compare, divide, recall_intervals
from ..evaluation.tables import ROWS, metrics_table


TASK = "image-text-retrieval"
# Columns whose values a card shows; others may be nobody's business.
_DIVIDED_BY = ("category", "language")

# What begins with a dot is a folder.
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# As the templates have it: a card is read beside its files first.
_FROM_FOLDER = 'load_pretrained(".")  # the folder of this card; from elsewhere its path'
_BASE_NAMED = re.compile(r"(?<=for the image-text matching model )`[^`\n]+`")
_BASE_SOUGHT = (
    "The base is looked for where `base_model_name_or_path` in `adapter_config.json` says. "
    "On another machine, put the\nbase's path or Hub name there."
)


# Headings, and what else of an adapter's card holds for the checkpoint that it was merged into.
_RESULTS, _LIMITS = "^## Before and after$", "^## Intended use and limits$"
_CARRIED = ("language", "license", "license_name", "license_link", "co2_eq_emissions")


class Measurement(Protocol):
    """What a card needs of [`~fusionmatch.training.pipeline.FitResult`], which has the meaning of each attribute."""

    before: dict[str, float]
    after: dict[str, float]
    before_queries: QueryResults
    after_queries: QueryResults
    trainable: list[tuple[str, int, int]]
    seconds: float


def write_model_card(
    folder: str | Path,
    result: Measurement,
    splits: Mapping[str, datasets.Dataset],
    *,
    base: str,
    catalogue: str | Mapping[str, Sequence[str]],
    split_rule: str,
    untrained: Sequence[str] = (),
    machine: str = "",
) -> Path:
    r"""
    Writes the card of an adapter or of a trained base, in place of one that is there.

    Args:
        folder (`str` or `Path`):
            Folder of the adapter or checkpoint.
        result ([`Measurement`]):
            What was measured; a [`~fusionmatch.training.pipeline.FitResult`].
        splits (`Mapping[str, datasets.Dataset]`):
            Splits `train`, `validation` and `test`, of which only sizes and products are looked at.
        base (`str`):
            The model that was trained on: a Hub name, or a folder, of which only the name is shown.
        catalogue (`str` or `Mapping[str, Sequence[str]]`):
            The catalogue as it was given: a Hub name, a path, or paths of each split. Of paths only the file names are
            shown.
        split_rule (`str`):
            How the splits came about, as part of a sentence.
        untrained (`Sequence[str]`, *optional*):
            Modules of the base that held new weights, so that what was measured before is chance.
        machine (`str`, *optional*):
            What it was trained on. What it emitted is read from CodeCarbon's `emissions.csv`, where that lies in the
            folder (`--report_to codecarbon`).

    Returns:
        `Path`: the card, `README.md` in the folder.

    Raises:
        `FileNotFoundError`: the folder has neither a checkpoint nor an adapter.
        `ValueError`: the test split is missing.
    """
    folder = Path(folder)
    if "test" not in splits or "train" not in splits:
        raise ValueError(f"A card needs the splits `train` and `test`; there are {sorted(splits)}.")
    adapter = _read(folder / "adapter_config.json")
    config = _read(folder / "config.json")
    if not adapter and not config:
        raise FileNotFoundError(
            f"{folder} has neither `config.json` (a checkpoint) nor `adapter_config.json` (an adapter). Save the "
            "model there first."
        )
    name, before, after = folder.resolve().name, result.before, result.after
    paths = [catalogue] if isinstance(catalogue, str) else [path for part in catalogue.values() for path in part]
    catalogue_name = ", ".join(dict.fromkeys(map(public_name, paths)))
    on_hub = HUB_NAME.fullmatch(catalogue_name) is not None
    peft_type = adapter.get("peft_type", "")
    origin = _metadata(base)
    languages = [origin.language] if isinstance(origin.language, str) else list(origin.language or [])
    licence = {key: origin[key] for key in ("license", "license_name", "license_link") if origin[key] is not None}
    emissions = _emissions(folder, result.seconds, machine)
    measured = [(label, key) for label, key, _ in ROWS if "rank" not in key]
    data = _card_data(
        base=public_name(base),
        relation="adapter" if adapter else "finetune",
        tags=[peft_type.lower()] if adapter else [],
        languages=languages,
        datasets=[catalogue_name] if on_hub else None,
        metrics=[key for _, key in measured],
        model_name=name,
        eval_results=_eval_results(result.after_queries, catalogue_name, on_hub),
        **licence,
        **({"co2_eq_emissions": emissions} if emissions else {}),
    )
    products = {split: set(dataset["product"]) for split, dataset in splits.items()}
    differences = compare([result.after_queries], [result.before_queries])
    results = _render(
        "results.md",
        table=metrics_table(before, after, differences),
        verdict=differences["rsum"].sentence("RSUM", "before"),
        parts=[
            (column, [_part(value, run) for value, run in by.items()])
            for column, by in _parts(result.after_queries).items()
        ],
        was="The base" if adapter else "The model it was trained from",
        untrained=_listed(untrained),
        image_queries=f"{after['i2t_queries']:,.0f}",
        text_queries=f"{after['t2i_queries']:,.0f}",
        images=f"{after['images']:,.0f}",
        texts=f"{after['texts']:,.0f}",
        pictures={split: f"{len(dataset):,}" for split, dataset in splits.items()},
        products={split: f"{len(names):,}" for split, names in products.items()},
        leaked=len(products["train"] & products["test"]),
        split_rule=split_rule,
        trainable=[(module, f"{some:,}", f"{every:,}") for module, some, every in result.trainable],
        whole=_listed(adapter.get("modules_to_save") or []),
        seconds=f"{result.seconds:,.0f}",
        machine=machine,
        emissions=emissions.get("emissions"),
    )
    return _write(
        folder,
        "adapter.md" if adapter else "base.md",
        data,
        name=name,
        base=public_name(base),
        catalogue=catalogue_name,
        peft_type={"LORA": "LoRA"}.get(peft_type, peft_type),
        rank=adapter.get("r"),
        vision_tower=config.get("vision_config", {}).get("model_type"),
        text_tower=config.get("text_config", {}).get("model_type"),
        results=results,
        products={split: f"{len(names):,}" for split, names in products.items()},
        # Half the 95 % interval of a share of one half, the widest; queries of one product are not independent.
        uncertainty=f"{98 / math.sqrt(len(products['test'])):.0f}",
        languages=", ".join(languages),
        licence=licence.get("license_name") or licence.get("license"),
    )


def _parts(queries: QueryResults) -> dict[str, dict[str, QueryResults]]:
    """The queries by category and by language, where there is more than one; of few products nothing can be said."""
    parts = {}
    for column in columns_to_divide_by(queries):
        by = {value: run for value, run in divide(queries, column).items() if run.num_products >= FEW}
        if column in _DIVIDED_BY and len(by) > 1:
            parts[column] = by
    return parts


def _part(value: str, run: QueryResults) -> dict[str, str]:
    found = recall_intervals([run])
    return {
        # A bar would begin a column of the table.
        "value": " ".join(value.split()).replace("|", "\\|"),
        "products": f"{run.num_products:,}",
        "i2t": f"{found['i2t_recall@10'].value:.1f}",
        "t2i": f"{found['t2i_recall@10'].value:.1f}",
        "rsum": f"{found['rsum'].value:.1f}",
        "interval": f"[{found['rsum'].low:.1f}, {found['rsum'].high:.1f}]",
    }


def _eval_results(queries: QueryResults, catalogue: str, on_hub: bool) -> list[EvalResult]:
    """The recalls with intervals and numbers of queries; of each category and language the sum of them."""
    labels = {key: label for label, key, _ in ROWS}

    def results(run: QueryResults, keys: Sequence[str], part: str | None) -> list[EvalResult]:
        asked = [int((ranks > 0).sum()) for ranks in run.ranks]
        counts = {"i2t": asked[0], "t2i": asked[1], "rsum": sum(asked)}
        found = recall_intervals([run])
        return [
            EvalResult(
                task_type=TASK,
                task_name="Image-text retrieval",
                dataset_type=catalogue if on_hub else "unknown",
                dataset_name=catalogue if part is None else f"{catalogue} ({part})",
                dataset_config=part,
                dataset_split="test",
                metric_type=key,
                metric_name=labels[key],
                metric_value=round(found[key].value, 2),
                metric_args={
                    "interval_95": [round(found[key].low, 2), round(found[key].high, 2)],
                    "queries": counts[key.split("_")[0]],
                },
            )
            for key in keys
        ]

    whole = results(queries, [key for key in labels if "rank" not in key], None)
    parts = [(f"{column} {value}", run) for column, by in _parts(queries).items() for value, run in by.items()]
    return whole + [each for part, run in parts for each in results(run, ["rsum"], part)]


def write_starter_card(
    folder: str | Path, encoders: Sequence[str], languages: Sequence[str], licence: str | None = "apache-2.0"
) -> Path:
    """
    Writes the card of a base whose encoders are pretrained and whose heads are not.

    Args:
        folder (`str` or `Path`):
            Folder of the checkpoint.
        encoders (`Sequence[str]`):
            One line of Markdown for each encoder: what it is, where it comes from, its licence.
        languages (`Sequence[str]`):
            ISO 639-1 codes of the languages that the text encoder was trained on.
        licence (`str`, *optional*, defaults to `"apache-2.0"`):
            The Hub's name of the licence that holds for all of the encoders; defaults to that of the starter's.

    Returns:
        `Path`: the card, `README.md` in the folder.
    """
    return _write(
        Path(folder),
        "base.md",
        _card_data(languages=languages, license=licence),
        # Not the folder's name: a starter is the same wherever it is built.
        name="FusionMatch starter base",
        encoders=encoders,
        untrained=_listed(_read(Path(folder) / "config.json")["untrained_modules"]),
        languages=", ".join(languages),
    )


def write_merged_card(
    folder: str | Path,
    adapter: str | Path,
    base: str,
    adapter_card: Path | None = None,
    scale: float | None = None,
    results: str | None = None,
) -> Path:
    """
    Writes the card of a checkpoint that an adapter was merged into, or that lies between a base and what it was
    adapted to.

    Args:
        folder (`str` or `Path`):
            Folder of the checkpoint.
        adapter (`str` or `Path`):
            The adapter: a Hub name, or a folder, of which only the name is shown.
        base (`str`):
            The base that it was merged into, likewise.
        adapter_card (`Path`, *optional*):
            The adapter's card, by [`write_model_card`], where its figures are those of the merged weights too: results
            and limits are carried over. What no training wrote has none.
        scale (`float`, *optional*):
            Share of the way from the base to the adapted weights, where it is not a merged adapter.
        results (`str`, *optional*):
            What was measured of it, as Markdown.

    Returns:
        `Path`: the card, `README.md` in the folder.
    """
    folder = Path(folder)
    config, origin, sections = _read(folder / "config.json"), _metadata(base), {}
    if adapter_card is not None and adapter_card.is_file():
        card = ModelCard.load(adapter_card, ignore_metadata_errors=True)
        text = re.search(
            rf"({_RESULTS}.*?)^## How to use$.*?{_LIMITS}(.*)^Made with ", card.text, re.DOTALL | re.MULTILINE
        )
        if text is not None:
            origin = card.data
            sections = {"results": text[1].strip(), "limits": text[2].strip()}
    carried = {name: origin.get(name) for name in _CARRIED if origin.get(name) is not None}
    languages = carried.pop("language", [])
    licence = carried.get("license_name") or carried.get("license")
    name, measured = folder.resolve().name, origin.eval_results if sections else None
    if measured:
        carried |= {"model_name": name, "eval_results": measured}
        carried |= {key: origin.get(key) for key in ("metrics", "datasets") if origin.get(key)}
    return _write(
        folder,
        "merged.md",
        _card_data(
            base=public_name(base),
            relation="finetune",
            languages=[languages] if isinstance(languages, str) else languages,
            **carried,
        ),
        name=name,
        base=public_name(base),
        adapter=public_name(str(adapter)),
        vision_tower=config["vision_config"]["model_type"],
        text_tower=config["text_config"]["model_type"],
        catalogue=measured[0].dataset_name if measured else None,
        licence=licence,
        scale=None if scale is None else f"{scale:g}",
        **({"results": results, "limits": None} | sections),
    )


def card_for_hub(card: str, repo_id: str, base: str | None = None) -> str:
    """
    A card as it reads on the Hub.

    Args:
        card (`str`):
            The card, metadata and text.
        repo_id (`str`):
            Name of its repository.
        base (`str`, *optional*):
            Hub name of an adapter's base, which the metadata links to.

    Returns:
        `str`: the card, by which one loads from the Hub. One with results that was rendered here bears the
        repository's name in place of the folder's, and an adapter's names the base on the Hub.
    """
    card = card.replace(_FROM_FOLDER, f'load_pretrained("{repo_id}")')
    if base is not None:
        card = _BASE_NAMED.sub(f"`{base}`", card).replace(
            _BASE_SOUGHT,
            f"Its base, `{base}`, is fetched from the Hub with it, at the commit in `adapter_config.json`.",
        )
    content = ModelCard(card, ignore_metadata_errors=True)
    name, title = repo_id.split("/")[-1], f"# {content.data.model_name}\n"
    renamed = content.text.lstrip().startswith(title)
    # PEFT tags a card with the base as it was loaded: the path of a folder.
    tags = [tag for tag in content.data.tags or () if not tag.startswith("base_model:")]
    if base is None and not renamed and tags == (content.data.tags or []):
        return card
    content.data.tags = tags or None
    if renamed:
        content.data.model_name, content.text = name, content.text.replace(title, f"# {name}\n", 1)
    if base is not None:
        content.data.base_model, content.data.base_model_relation = base, "adapter"
    return f"{str(content).rstrip()}\n"


def public_name(name_or_path: str) -> str:
    """A Hub name as it is; of a path, in the form of any system, the last part alone."""
    if Path(name_or_path).exists():
        return Path(name_or_path).resolve().name
    if HUB_NAME.fullmatch(name_or_path):
        return name_or_path
    return re.split(r"[\\/]", name_or_path.rstrip("\\/"))[-1]


def _card_data(
    base: str = "", relation: str = "", tags: Sequence[str] = (), languages: Sequence[str] = (), **data: Any
) -> ModelCardData:
    # The Hub makes a link of `base_model`, which a folder's name cannot be.
    links = {"base_model": base, "base_model_relation": relation} if HUB_NAME.fullmatch(base) else {}
    return ModelCardData(
        language=list(languages) or None,
        library_name="fusionmatch",
        pipeline_tag="zero-shot-image-classification",
        tags=[TASK, "fusionmatch", *tags],
        **links,
        **data,
    )


def _write(folder: Path, template: str, data: ModelCardData, **values: Any) -> Path:
    card = ModelCard.from_template(
        data,
        template_str=_template(template),
        versions=", ".join(f"{name} {version(name)}" for name in ("fusionmatch", "transformers", "peft", "torch")),
        **values,
    )
    path = folder / REPOCARD_NAME
    path.write_text(f"{str(card).rstrip()}\n", encoding="utf-8")
    return path


def _template(name: str) -> str:
    return files("fusionmatch.model_cards").joinpath(name).read_text(encoding="utf-8")


def _render(name: str, **values: Any) -> str:
    return Template(_template(name), undefined=StrictUndefined).render(**values).strip()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _emissions(folder: Path, seconds: float, machine: str) -> dict[str, Any]:
    """
    What CodeCarbon says of a training of so many seconds, in the form of the Hub: grams of CO2 equivalents. Nothing
    where the last that it wrote is of another training, or where it did not know the place.
    """
    path = folder / "emissions.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        last = rows[-1]
        kilograms, duration = float(last["emissions"]), float(last["duration"])
    except (IndexError, KeyError, TypeError, ValueError):
        return {}  # none written, or an empty figure
    # It writes these where it could not find out, and reckons with the grid of Quebec.
    unknown = (last.get("latitude"), last.get("longitude")) == ("46.8", "-71.2")
    if unknown or not math.isfinite(kilograms) or abs(duration - seconds) > max(30, 0.2 * seconds):
        return {}
    found = {"emissions": float(f"{kilograms * 1000:.3g}"), "source": "CodeCarbon", "training_type": "fine-tuning"}
    place = {"geographical_location": last.get("country_name"), "hardware_used": machine}
    return found | {name: value for name, value in place.items() if value}


def _metadata(base: str) -> ModelCardData:
    """Of the card in a base's folder; empty for a base on the Hub, which is not asked."""
    path = Path(base) / REPOCARD_NAME
    return ModelCard.load(path, ignore_metadata_errors=True).data if path.is_file() else ModelCardData()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
