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
"""Commands that make models, and what all commands have in common."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from fusionmatch import FusionMatchConfig, FusionMatchModel, FusionMatchTrainingArguments, load_catalogue
from fusionmatch.catalogue import read_catalogue
from fusionmatch.commands import COMMANDS, main
from fusionmatch.commands.arguments import ModelArguments
from fusionmatch.commands.models import load_model
from fusionmatch.evaluation import evaluate_retrieval
from fusionmatch.loading import load_pretrained
from fusionmatch.training import lora_config
from fusionmatch.training.adapters import four_bit_config
from fusionmatch.training.pipeline import fit

from ..core.tiny import tiny_config, tiny_processor, tower_config
from ..hub.checks import pickles
from .conftest import ADAPT, fails


def test_adapt_writes_adapter_metrics_report_and_quarantine(adapter, shop, capsys):
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "metrics.json", "report.html"} <= names
    assert {"quarantine.jsonl", "processor_config.json", "fusionmatch_base.json"} <= names
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics["steps"] > 0
    assert metrics["products"]["train"] + metrics["products"]["validation"] + metrics["products"]["test"] == 54
    assert 0 < metrics["before"]["chance_rsum"] < 600
    faults = json.loads((shop.parent / "faults.json").read_text())
    quarantined = {json.loads(line)["row"] for line in (adapter / "quarantine.jsonl").read_text().splitlines()}
    assert quarantined < {fault["row"] for fault in faults}
    assert len(quarantined) == 6


def test_nothing_that_is_kept_is_a_pickle(adapter, base, shop, tmp_path):
    # `checkpoint-*` are those of a running training: beside the weights they hold the state that transformers' own
    # Trainer pickles, which only the training reads again.
    left = shutil.copytree(adapter, tmp_path / "adapter", ignore=shutil.ignore_patterns("checkpoint-*"))
    merged, index, space = (tmp_path / name for name in ("merged", "index", "space"))
    assert main(["adapter", "merge", str(adapter), "--output_dir", str(merged)]) == 0
    model = ["--model_name_or_path", str(merged)]
    search = ["search", *model, "--catalogue", str(shop), "--index_dir", str(index), "--query", "a mug"]
    assert main(search) == 0
    assert main(["demo", str(shop), *model, "--space_dir", str(space)]) == 0
    for folder in (left, base, merged, index, space):
        assert pickles(folder) == (0, set()), folder
    torch.save({"a": 1}, left / "weights.pt")
    assert pickles(left) == (1, {"weights.pt"})


def test_the_report_stands_alone(adapter):
    page = (adapter / "report.html").read_text(encoding="utf-8")
    assert "RSUM" in page
    assert "data:image/jpeg;base64," in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page


def test_adapt_shows_before_after_and_what_to_type_next(base, shop, tmp_path, capsys):
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop)]
    assert main([*command, "--output_dir", str(tmp_path / "adapter"), *ADAPT]) == 0
    shown = capsys.readouterr().out
    for part in ("60 rows read", "6 quarantined", "quarantine.jsonl", "text → picture R@1"):
        assert part in shown, part
    for part in ("queries on", "Text queries among", "Picture query", "report.html", "fusionmatch search"):
        assert part in shown, part


def test_a_run_that_was_stopped_after_its_last_step_is_measured(adapter, base, shop, tmp_path, capsys):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop), "--output_dir", str(folder)]
    before = json.loads((folder / "metrics.json").read_text())
    fails(capsys, [*command, *ADAPT], "had already ended")
    (folder / "metrics.json").unlink()
    assert main([*command, *ADAPT]) == 0
    assert json.loads((folder / "metrics.json").read_text())["after"] == before["after"]


def test_presets(base, shop, tmp_path, capsys):
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop), *ADAPT]
    for preset in ("fast", "dora", "full"):
        assert main([*command, "--preset", preset, "--output_dir", str(tmp_path / preset)]) == 0
        loaded, _ = load_pretrained(tmp_path / preset)
        assert hasattr(loaded, "peft_config") == (preset != "full")
    fast = load_file(tmp_path / "fast" / "adapter_model.safetensors")
    assert not any("_model." in name.removeprefix("base_model.model.") for name in fast)
    dora = load_file(tmp_path / "dora" / "adapter_model.safetensors")
    assert any("vision_model" in name and "magnitude" in name for name in dora)
    before, full = load_pretrained(base)[0].state_dict(), loaded.state_dict()
    for tower in ("vision_model", "text_model"):
        assert any(not torch.equal(before[name], full[name]) for name in before if name.startswith(tower))
    # Between two whole checkpoints: what the run measured before and after is at the ends.
    command = ["forgetting", "--catalogue", str(shop), "--general_file", str(shop), "--disable_tqdm"]
    command += ["--model_name_or_path", str(tmp_path / "full"), "--base", str(base), "--scales", "0", "1"]
    assert main([*command, "--most_forgotten", "1", "--output_dir", str(tmp_path / "kept")]) == 0
    points = json.loads((tmp_path / "kept" / "forgetting.json").read_text())["points"]
    general = read_catalogue({"test": [str(shop)]}).dataset
    for point, name in zip(points, (base, tmp_path / "full"), strict=True):
        expected = evaluate_retrieval(*load_pretrained(name), general, disable_tqdm=True)["rsum"]
        assert point["general"] == pytest.approx(expected)
    capsys.readouterr()
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop), *ADAPT]
    fails(capsys, [*command, "--preset", "lorra"], "fast, lora, dora, qlora, full", "lorra")


def test_qlora(shop, tmp_path, monkeypatch):
    # These kernels do not go back from evaluation to training; those of GPUs do.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    # Blocks of 64 numbers are quantised together.
    wide = {"hidden_size": 64, "intermediate_size": 128}
    config = tiny_config().to_dict()
    config |= {"vision_config": tower_config("vit", **wide), "text_config": tower_config("bert", **wide)}
    FusionMatchModel(FusionMatchConfig(**config)).save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    model, processor = load_pretrained(tmp_path / "base", quantization_config=four_bit_config())
    splits = load_catalogue(shop)
    args = FusionMatchTrainingArguments(
        str(tmp_path / "adapter"), num_train_epochs=2, per_device_train_batch_size=16, use_cpu=True, disable_tqdm=True
    )
    after = fit(model, processor, splits, args, lora_config(model)).after

    # The adapter belongs to the base in 4 bits and in full: it was measured on the one, and loads on the other.
    for kwargs in ({"quantization_config": four_bit_config()}, {}):
        model, processor = load_pretrained(tmp_path / "adapter", **kwargs)
        base = model.get_base_model()
        query = base.text_model.encoder.layer[0].attention.self.query
        assert (query.base_layer.weight.dtype == torch.uint8) == bool(kwargs)
        assert query.lora_B["default"].weight.any()
        assert base.vision_head.fc1.weight.dtype == torch.float32
        rsum = evaluate_retrieval(model, processor, splits["test"], disable_tqdm=True)["rsum"]
        assert rsum == pytest.approx(after["rsum"], abs=1e-6) or not kwargs


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_qlora_is_for_gpus(shop, base, tmp_path, capsys):
    files = ["--model_name_or_path", str(base), "--catalogue", str(shop), "--output_dir", str(tmp_path / "adapter")]
    fails(capsys, ["adapt", "--preset", "qlora", *files], "trains on a GPU", "--preset lora")


def test_adapters_are_listed_merged_and_compared(adapter, shop, tmp_path, capsys):
    assert main(["adapter", "list", str(adapter.parent)]) == 0
    shown = capsys.readouterr().out
    fingerprint = json.loads((adapter / "fusionmatch_base.json").read_text())["fingerprint"]
    assert "LORA" in shown and fingerprint[:16] in shown
    # Another run whose adapter bears the same name stays apart.
    other = shutil.copytree(adapter, tmp_path / adapter.name)
    assert main(["adapter", "compare", str(adapter), str(other)]) == 0
    shown = capsys.readouterr().out
    assert "i2t_recall@1" in shown and str(adapter) in shown and str(other) in shown
    assert f"{other}: No difference shown to {adapter}: RSUM +0.0" in shown
    # One that found what its base did.
    shutil.copy(adapter / "queries_before.parquet", other / "queries.parquet")
    assert main(["adapter", "compare", str(adapter), str(other)]) == 0
    metrics = json.loads((adapter / "metrics.json").read_text())
    change = metrics["before"]["rsum"] - metrics["after"]["rsum"]
    assert abs(change) > 1 and f"to {adapter}: RSUM {change:+.1f} [" in capsys.readouterr().out
    assert main(["adapter", "merge", str(adapter), "--output_dir", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    command = ["evaluate", "--catalogue", str(shop), "--json", "--model_name_or_path", str(tmp_path / "merged")]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["rsum"] == pytest.approx(metrics["after"]["rsum"])
    merged, _ = load_pretrained(tmp_path / "merged")
    assert not merged.config.untrained_modules
    # The card has the figures of the adapter, unless it was made on other weights, as those in four bits are.
    assert ModelCard.load(tmp_path / "merged" / "README.md").data.eval_results
    note = json.loads((other / "fusionmatch_base.json").read_text())
    (other / "fusionmatch_base.json").write_text(json.dumps(note | {"dtype": "bitsandbytes, torch.float32"}))
    assert main(["adapter", "merge", str(other), "--output_dir", str(tmp_path / "of four bits")]) == 0
    assert "it was not measured" in (tmp_path / "of four bits" / "README.md").read_text(encoding="utf-8")
    fails(capsys, ["adapter", "merge", str(adapter), "--output_dir", str(tmp_path / "merged")], "not empty")
    fails(capsys, ["adapter", "list", str(shop.parent)], "is no adapter")
    fails(capsys, ["adapter", "marge", str(adapter)], "list|merge|compare", "marge")
    (other / "fusionmatch_base.json").write_text(json.dumps(note | {"fingerprint": "0" * 64}))
    fails(capsys, ["adapter", "compare", str(adapter), str(other)], "different fingerprints", "--baseline")


def test_train_makes_a_base_that_counts_as_trained(base, shop, tmp_path, capsys):
    command = ["train", "--model_name_or_path", str(base), "--catalogue", str(shop)]
    assert main([*command, "--output_dir", str(tmp_path / "base"), *ADAPT]) == 0
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["untrained_modules"] == []
    command = ["evaluate", "--model_name_or_path", str(tmp_path / "base"), "--catalogue", str(shop), "--json"]
    capsys.readouterr()
    assert main(command) == 0
    after = json.loads((tmp_path / "base" / "metrics.json").read_text())["after"]["rsum"]
    assert json.loads(capsys.readouterr().out)["rsum"] == pytest.approx(after)


def test_a_ranking_stage_is_trained_on_a_base_that_stays_as_it_is(base, shop, tmp_path, capsys):
    command = ["train", "--model_name_or_path", str(base), "--catalogue", str(shop), *ADAPT, "--ranking_stage", "True"]
    folder = tmp_path / "ranking"
    assert main([*command, "--output_dir", str(folder)]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    trained, was = load_pretrained(folder)[0], load_pretrained(base)[0]
    assert "ranker" not in trained.config.untrained_modules
    assert trained.ranker.fc2.weight.any()  # at 0 before
    assert abs(trained.ranker.bias.item() - -10) > 1  # fitted to the base, not left at the initial value
    for name, tensor in trained.fusionmatch.state_dict().items():
        assert torch.equal(tensor, was.state_dict()[name]), name
    # Measured again from the folder: with the stage, and by the embeddings alone, which was "before".
    command = ["evaluate", "--model_name_or_path", str(folder), "--catalogue", str(shop), "--json"]
    for top_k, wanted in (("20", "after"), ("0", "before")):
        capsys.readouterr()
        assert main([*command, "--ranking_top_k", top_k]) == 0
        assert json.loads(capsys.readouterr().out)["rsum"] == pytest.approx(metrics[wanted]["rsum"])
    command = ["search", "--model_name_or_path", str(folder), "--catalogue", str(shop), "--query", "a red mug"]
    assert main(command) == 0
    assert "match" in capsys.readouterr().out
    command = ["train", "--model_name_or_path", str(folder), "--catalogue", str(shop), "--use_cpu"]
    fails(capsys, [*command, "--output_dir", str(tmp_path / "more")], "ranking stage", "matching")


def test_a_recipe_is_read_and_the_command_line_wins(base, shop, tmp_path):
    recipe = {"model_name_or_path": str(base), "catalogue": str(shop), "num_train_epochs": 1, "use_cpu": True}
    recipe |= {"per_device_train_batch_size": 8, "learning_rate": "1e-4", "lora_r": 2, "disable_tqdm": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = tmp_path / "adapter"
    assert (
        main(["adapt", "--config", str(tmp_path / "recipe.yaml"), "--output_dir", str(folder), "--lora_r", "3"]) == 0
    )
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3
    arguments = json.loads((folder / "training_args.json").read_text())
    assert arguments["learning_rate"] == 1e-4
    assert arguments["num_train_epochs"] == 1


def test_unknown_keys_fail(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("learnin_rate: 1\n")
    fails(capsys, ["adapt", "--config", str(tmp_path / "recipe.yaml")], "unknown keys", "learnin_rate")
    with pytest.raises(SystemExit) as stop:
        main(["adapt", "--catalogue", "x.csv", "--learnin_rate", "1"])
    assert stop.value.code == 2


def test_settings_in_place_of_the_base_s(base, shop, tmp_path, capsys):
    command = ["train", "--model_name_or_path", str(base), "--catalogue", str(shop), *ADAPT]
    command += ["--output_dir", str(tmp_path / "base"), "--config_overrides"]
    assert main([*command, '{"feature_dropout": 0.25}']) == 0
    assert json.loads((tmp_path / "base" / "config.json").read_text())["feature_dropout"] == 0.25
    fails(capsys, [*command, '{"poled_dropout": 0.25}'], "poled_dropout")
    fails(capsys, [*command, "0.25"], "mapping")


def test_starting_values_in_place_of_the_base_s(base, caplog):
    """A checkpoint brings the starting values of parts that were never trained, and an override has to win."""
    overrides = {"gate_init_value": 0.5, "logit_scale_init_value": 1.5}
    untrained = ["vision_fusion", "text_fusion", "similarity"]
    arguments = ModelArguments(str(base), config_overrides=json.dumps(overrides | {"untrained_modules": untrained}))
    model, _ = load_model(arguments)
    assert model.vision_fusion.residual.gate.item() == model.text_fusion.residual.gate.item() == 0.5
    assert model.similarity.logit_scale.item() == 1.5
    trained, _ = load_model(ModelArguments(str(base)))
    arguments = ModelArguments(str(base), config_overrides=json.dumps(overrides | {"untrained_modules": []}))
    model, _ = load_model(arguments)
    assert torch.equal(model.similarity.logit_scale, trained.similarity.logit_scale)
    assert "`similarity` of this checkpoint was trained already" in caplog.text


def test_bad_input_is_one_worded_line(base, shop, tmp_path, capsys):
    model = ["--model_name_or_path", str(base)]
    fails(capsys, ["adapt", *model], "--catalogue")
    fails(capsys, ["adapt", *model, "--catalogue", str(tmp_path / "none.csv")], "none.csv")
    wrong = ["--catalogue", str(shop), "--caption_column", "tilte"]
    fails(capsys, ["adapt", *model, *wrong, "--output_dir", str(tmp_path / "a")], "tilte", "title")
    fails(capsys, ["evaluate", *model, "--catalogue", str(shop), "--split", "tset"], "tset", "validation")
    fails(capsys, ["search", *model, "--catalogue", str(shop)], "--query")
    fails(capsys, ["search", *model, "--catalogue", str(shop), "--image", "nowhere.jpg"], "nowhere.jpg")
    fails(capsys, ["evaluate", *model, "--catalogue", str(shop), "--test_size", "1.5"], "1.5")
    empty = tmp_path / "empty.csv"
    empty.write_text("image,title\nmissing.jpg,A mug\n")
    fails(capsys, ["evaluate", *model, "--catalogue", str(empty)], "No row", "missing")
    tiny = tmp_path / "tiny.csv"
    shutil.copytree(shop.parent / "images", tmp_path / "images")
    header, *rows = shop.read_text(encoding="utf-8").splitlines()
    tiny.write_text("\n".join([header, *rows[:2]]), encoding="utf-8")
    fails(capsys, ["adapt", *model, "--catalogue", str(tiny), "--output_dir", str(tmp_path / "b")], "at least 2")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_wrong_model_is_one_worded_line(shop, adapter, tmp_path, capsys):
    data = ["--catalogue", str(shop)]
    fails(capsys, ["evaluate", "--model_name_or_path", str(shop.parent), *data], "config.json")
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    bert.save_pretrained(tmp_path / "bert")
    fails(capsys, ["evaluate", "--model_name_or_path", str(tmp_path / "bert"), *data], "bert", "from_dual_encoder")
    command = ["adapt", "--model_name_or_path", str(adapter), *data, "--output_dir", str(tmp_path / "again")]
    fails(capsys, command, "is an adapter", "merge")


def test_an_output_folder_with_other_things_is_left_alone(base, shop, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop), "--output_dir", str(tmp_path)]
    fails(capsys, [*command, *ADAPT], "not empty", "--output_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_run_goes_on_from_the_checkpoint(base, shop, tmp_path, capsys):
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop)]
    command += ["--output_dir", str(tmp_path / "adapter"), *ADAPT]
    assert main(command) == 0
    first = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    command[command.index("--num_train_epochs") + 1] = "3"
    # With room for one checkpoint only, the one that it goes on from is removed on the way.
    assert main([*command, "--save_total_limit", "1", "--load_best_model_at_end", "False"]) == 0
    second = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    assert second["steps"] == first["steps"] * 3 // 2
    # Before is the base, also when training goes on.
    assert second["before"]["rsum"] == pytest.approx(first["before"]["rsum"])


def test_sample_shop_and_env(tmp_path, capsys):
    assert main(["sample-shop", str(tmp_path / "shop"), "--num_products", "20"]) == 0
    assert (tmp_path / "shop" / "products.csv").is_file()
    assert "fusionmatch adapt" in capsys.readouterr().out
    assert main(["env"]) == 0
    assert "transformers" in capsys.readouterr().out


def test_no_command_and_wrong_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert main(["adopt"]) == 2
    assert "no command 'adopt'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, capsys):
    if name == "env":
        pytest.skip("env has no options")
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"fusionmatch {name}" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
@pytest.mark.parametrize("own", [False, True])
def test_commands_keep_the_pages_of_large_tensors(own):
    if "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("pages are large here")
    code = """
import resource
import torch
from fusionmatch.commands import main
main(["env"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = os.environ | ({"MALLOC_ARENA_MAX": "2"} if own else {})
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    pages = 2**26 / os.sysconf("SC_PAGESIZE")
    faults = int(run.stdout.splitlines()[-1])
    assert faults > 10 * pages if own else faults < 3 * pages


def test_a_fresh_process_without_traceback(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "fusionmatch", "adapt", "--catalogue", "nowhere.csv", "--output_dir", "x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "nowhere.csv" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_concepts_for_an_adapter_and_for_a_ranking_stage(base, adapter, shop, tmp_path, capsys):
    command = ["concepts", str(shop), "--language", "none", "--attribute_columns", "color", "--min_count", "1"]
    command += ["--output_file", str(tmp_path / "concepts.json"), "--output_dir", str(tmp_path / "new")]
    fails(capsys, [*command, "--model_name_or_path", str(adapter)], "is an adapter", "adapter merge")
    ranked, processor = load_pretrained(base, ranking_stage=True)
    ranked.save_pretrained(tmp_path / "ranked")
    processor.save_pretrained(tmp_path / "ranked")
    assert main([*command, "--model_name_or_path", str(tmp_path / "ranked")]) == 0
    assert load_pretrained(tmp_path / "new")[0].config.num_concepts > 1
