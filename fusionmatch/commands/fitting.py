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
"""What `adapt` and `train` have in common: read, show what trains, fit, show what came of it, report."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from huggingface_hub.constants import REPOCARD_NAME
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..catalogue import Intake, examine
from ..catalogue.quarantine import count_reasons, write_quarantine
from ..evaluation.inputs import count_tokens, text_limit
from ..evaluation.queries import compare
from ..evaluation.searches import Search, image_searches, text_searches
from ..evaluation.tables import format_table
from ..hub.model_card import public_name, write_model_card
from ..report import Record, write_report
from ..report.record import FINDINGS_FILE, QUARANTINE_FILE
from ..training import FusionMatchTrainingArguments, describe_trainable
from ..training.pipeline import METRICS_FILE, FitResult, check_output_dir, fit
from ..training.unpaired import PartlyPairedDataset
from .arguments import DataArguments, FitDataArguments, ModelArguments
from .models import load_base


class _PrintTrainable(TrainerCallback):
    """Prints what trains as soon as the trainer has it: an hour later is too late to see that it is the wrong part."""

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.process_index != 0:
            return
        model = kwargs["model"]
        print(f"\n{'module':<18}{'trained':>12}{'of':>14}{'share':>8}")
        for name, some, every in describe_trainable(model):
            print(f"{name:<18}{some:>12,}{every:>14,}{some / max(1, every):>8.1%}")
        if hasattr(model, "peft_config"):
            whole = ", ".join(model.peft_config["default"].modules_to_save)
            low_rank = any(".lora_" in name for name, _ in model.named_parameters())
            print(f"The adapter carries {whole} whole{', and LoRA for the rest of what trains' if low_rank else ''}.")
        # Flushed: in a file it would otherwise be seen at the end.
        print(flush=True)


def fit_and_report(
    what: str,
    model_args: ModelArguments,
    data_args: FitDataArguments,
    args: FusionMatchTrainingArguments,
    prepare: Callable[[nn.Module], Any],
    **loading: Any,
) -> None:
    """
    Reads the catalogue, fits an adapter or a checkpoint, prints and writes the report. `prepare` freezes what does not
    train, and gives the adapter's configuration if there is one; `loading` is for [`load_base`].
    """
    main_process = args.process_index == 0
    check_output_dir(args.output_dir)
    output_dir = Path(args.output_dir)
    if main_process:
        _measure_again_without_report(output_dir)
    # Pictures by URL are downloaded once; the other processes find them on the disk.
    with args.main_process_first(desc="the catalogue") if data_args.download_images else nullcontext():
        intake = data_args.read()
    splits = data_args.split(intake)
    splits, unpaired_texts = data_args.take_apart(splits)
    model, processor = load_base(model_args, **loading)
    output_dir.mkdir(parents=True, exist_ok=True)
    if main_process:
        print(intake.summary())
        for name, split in splits.items():
            print(f"  {name:<10} {len(split):>7,} pictures of {len(set(split['product'])):,} products")
        if unpaired_texts is not None:
            apart = sum(1 for texts in splits["train"]["texts"] if not texts)
            print(f"  of train, {apart:,} pictures without texts; {len(unpaired_texts):,} texts without pictures")
        left_out = intake.write_quarantine(output_dir / QUARANTINE_FILE)
        if intake.quarantine:
            print(f"Not used: see {left_out}")
        limit = text_limit(processor, model.config.text_config)
        findings = examine(intake, partial(count_tokens, processor), limit)
        worth_a_look = write_quarantine(findings, output_dir / FINDINGS_FILE)
        if findings:
            look = "; ".join(f"{count:,} × {reason}" for reason, count in count_reasons(findings))
            print(f"Worth a look ({look}): see {worth_a_look}")
    adapter = prepare(model)
    fresh = [name for name in model.config.untrained_modules if "fusion" in name or "head" in name]
    result = fit(model, processor, splits, args, adapter, callbacks=[_PrintTrainable()], unpaired_texts=unpaired_texts)
    if not main_process:
        return
    if fresh:
        print(f"The base was never trained on pairs ({', '.join(fresh)} were new), so before is chance.")
    pairs = result.trainer.train_dataset
    if isinstance(pairs, PartlyPairedDataset):
        sure = "" if pairs.found else f": of none was the teacher sure enough ({args.pseudo_pair_threshold:g})"
        print(f"Texts found for {pairs.found:,} of {len(pairs.unlabelled):,} pictures in the last epoch{sure}.")
    differences = compare([result.after_queries], [result.before_queries])
    print(f"Trained in {result.seconds:.0f} s.\n\n{format_table(result.before, result.after, differences)}")
    queries = f"{result.after['i2t_queries']:.0f} picture and {result.after['t2i_queries']:.0f} text queries"
    tested, seen = set(splits["test"]["product"]), set(splits["train"]["product"])
    held_out = f"{queries} on {len(tested)} products "
    # Splits of the user's own may share products, as when new photos of known products are the test.
    held_out += f"({len(tested & seen)} of them also trained on)" if tested & seen else "held out of training"
    print(held_out + ".")
    if "concepts_image_r_precision" in result.after:
        image, text, frequency = (
            result.after[f"concepts_{name}_r_precision"] for name in ("image", "text", "frequency")
        )
        print(
            f"Concepts found first that the catalogue names: {image:.0f} % for pictures, {text:.0f} % for texts "
            f"({frequency:.0f} % by always naming the commonest)."
        )
    _print_searches(result, splits["test"])
    base = str(model.config.name_or_path)
    device = _device_name(args.device)
    record = Record.from_fit(
        result,
        splits,
        intake,
        what=what,
        catalogue=data_args.name,
        base=public_name(base),
        untrained_base=bool(fresh),
        machine=device,
    )
    record.save(output_dir)
    report = write_report(output_dir / "report.html", [output_dir], data_args.report_language)
    catalogue, rule = data_args.files or data_args.catalogue, _split_rule(data_args, intake)
    write_model_card(
        output_dir, result, splits, base=base, catalogue=catalogue, split_rule=rule, untrained=fresh, machine=device
    )
    source = f"--catalogue {data_args.catalogue}" if data_args.catalogue else "--catalogue products.csv"
    print(
        f"\nReport with pictures: {report}\nThe {what} is in {output_dir}. Next:\n"
        f'  fusionmatch search --model_name_or_path {output_dir} {source} --query "what to look for"\n'
        f"  fusionmatch evaluate --model_name_or_path {output_dir} {source}"
        f"{'' if adapter is None else ' --baseline base'}\n"
        f"  fusionmatch demo --model_name_or_path {output_dir} {source}       (a page to search on)\n"
        "  fusionmatch adapt --catalogue your/products.csv       (your own catalogue; --help for every option)"
    )
    if args.push_to_hub:
        _push(result, output_dir)


def _measure_again_without_report(folder: Path) -> None:
    """A run that was killed between its metrics and its card, the last that is written, is not at its end."""
    metrics, card = folder / METRICS_FILE, folder / REPOCARD_NAME
    if metrics.is_file() and not (card.is_file() and card.stat().st_mtime >= metrics.stat().st_mtime):
        metrics.unlink()


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    # Not every kind of accelerator tells its name (MPS does not).
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type.upper()


def _push(result: FitResult, folder: Path) -> None:
    try:
        # What `fit` saved, with the card; this process alone could not save what is spread over all of them.
        pushed = result.trainer.push_saved()
    except OSError as error:
        name = result.trainer.hub_model_id
        raise OSError(f"{error} All is whole in {folder}: `fusionmatch push {folder} {name}` sends it.") from error
    print(f"Pushed to {pushed.repo_id} ({'private' if pushed.private else 'public'}): {pushed.url}")


def _split_rule(data_args: DataArguments, intake: Intake) -> str:
    if intake.own_splits is not None:
        return "kept as the catalogue gives them"
    validation, test = 100 * data_args.validation_size, 100 * data_args.test_size
    return (
        f"by product, from a hash of its name and the seed {data_args.split_seed}; {validation:g} % of the products "
        f"for validation, {test:g} % for the test; products with the same picture stay together"
    )


def _print_searches(result: FitResult, dataset: datasets.Dataset, count: int = 3) -> None:
    """A few text queries and one picture query of the test split with the products found."""
    before, after = result.before_embeddings, result.after_embeddings
    titles = [texts[0] for texts in dataset["texts"]]

    def line(search: Search) -> str:
        product = after.image_products[search.row]
        found = []
        for row in search.found[:count]:
            mark = "✓ " if after.image_products[row] == product else ""
            found.append(f"{mark}{after.image_products[row]} ({_short(titles[row], 44)})")
        return "\n".join(f"      {i}. {item}" for i, item in enumerate(found, start=1))

    searches = text_searches(before, after, top_k=count)
    print("\nText queries among the held-out products (✓ = the right one):")
    for search in searches[:: max(1, len(searches) // count)][:count]:
        print(f"  “{_short(search.text or '', 90)}”\n{line(search)}")
    pictures = image_searches(before, after, top_k=count)
    counts = Counter(after.image_products)
    shared = [s for s in pictures if counts[after.image_products[s.row]] > 1]
    for search in (shared or pictures)[:1]:
        print(f"Picture query: {dataset[search.row]['image_id']}, {_short(titles[search.row], 60)}\n{line(search)}")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
