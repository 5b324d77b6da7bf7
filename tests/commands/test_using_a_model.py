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
"""Commands that use a model on a catalogue, and make none."""

import csv
import json
import shutil

import pyarrow
import pytest
import torch

from fusionmatch.catalogue import load_catalogue
from fusionmatch.commands import main
from fusionmatch.commands.forgetting import ForgettingArguments, _caveat
from fusionmatch.evaluation.forgetting import Point, recommend
from fusionmatch.evaluation.queries import QueryResults
from fusionmatch.evaluation.retrieval import evaluate_retrieval
from fusionmatch.loading import base_state_dict, load_pretrained

from .conftest import fails


def test_check_finds_pairs_that_may_not_belong_together(base, shop, capsys):
    assert (
        main(["check", str(shop), "--mismatches", "True", "--model_name_or_path", str(base), "--disable_tqdm", "True"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "may not belong together" in shown
    assert "of the other products' texts fit better" in shown
    assert "text is longer than the model reads" in shown


def test_listings_to_look_at_become_a_page(base, shop, tmp_path, capsys):
    command = ["listings", str(shop), "--model_name_or_path", str(base), "--disable_tqdm", "True"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "listings are worth a look" in shown
    assert "fit better" in (tmp_path / "out" / "listings.html").read_text(encoding="utf-8")
    fails(capsys, [*command, "--language", "fr"], "en or ja, got 'fr'")


def test_search_and_listings_say_how_sure_they_are_once_calibrated(adapter, shop, tmp_path, capsys, caplog):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    files = ["--model_name_or_path", str(folder), "--catalogue", str(shop)]
    search = ["search", *files, "--query", "a red leather boot", "--top_k", "2"]
    fails(capsys, [*search, "--precision", "0.95"], "needs a calibration", "fusionmatch calibrate")
    sizes = ["--validation_size", "0.4", "--test_size", "0.3", "--disable_tqdm", "True"]
    assert main(["calibrate", *files, *sizes, "--carried", "0.7", "--matched", "0.6"]) == 0
    shown = capsys.readouterr().out
    assert "60% of the pairs are taken to belong together" in shown
    assert "Texts as queries" in shown and "Pictures as queries" in shown and "Calibration error" in shown
    assert "70% of the searches" in shown
    assert main([*search, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["hits"]
    assert 0 < first["probability"] < 1 and second["probability"] is None
    path = folder / "calibration.json"
    content = json.loads(path.read_text())
    content["t2i"]["thresholds"] = {"0.8": 0.0, "0.9": 1.0, "0.95": None, "0.99": None}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "calibration.json").write_text(json.dumps(content))
    other = ["--calibration_dir", str(tmp_path / "other")]
    for precision, carried in (("0.8", True), ("0.9", False), ("0.95", False)):
        assert main([*search, "--json", "--precision", precision, *other]) == 0
        assert json.loads(capsys.readouterr().out)["carried"] is carried
        assert main([*search, "--precision", precision, *other]) == 0
        assert ("Not carried" in capsys.readouterr().out) is not carried
    fails(capsys, [*search, "--precision", "0.5"], "0.8, 0.9, 0.95, 0.99, not 0.5")
    fails(capsys, ["calibrate", *files, "--validation_size", "0.05"], "at least 20 held-out queries")
    # Pairs: a listing's page and table say how sure the model is.
    assert (
        main(["listings", str(shop), *files[:2], "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "True"]) == 0
    )
    page = (tmp_path / "out" / "listings.html").read_text(encoding="utf-8")
    with (tmp_path / "out" / "listings.csv").open(encoding="utf-8-sig", newline="") as file:
        listings = list(csv.DictReader(file))
    assert page.count("probable that they belong together") == len(listings) > 0
    assert "for pairs of which 60% belong together" in page
    suspicions = [float(row["share_that_fits_better"]) + 1 - float(row["probability"]) for row in listings]
    assert suspicions == sorted(suspicions, reverse=True) and min(suspicions) > 0.998  # rounded in the table
    # Of the training before this one: said and left out where nobody asked for it.
    stale = shutil.copytree(adapter, tmp_path / "stale")
    (stale / "calibration.json").write_text(json.dumps(content | {"model_fingerprint": "0"}))
    capsys.readouterr()
    assert main(["search", "--model_name_or_path", str(stale), *files[2:], "--query", "a red boot", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["probability"] is None
    assert "There are no probabilities" in caplog.text
    named = ["--model_name_or_path", str(stale), *files[2:], "--calibration_dir", str(stale)]
    fails(capsys, ["search", *named, "--query", "a red boot"], "fingerprint", "Calibrate anew")
    fails(capsys, ["calibrate", *files, "--matched", "1.5"], "`--matched` must be a share in (0, 1), got 1.5")


def test_evaluate_compares_and_divides(adapter, base, shop, tmp_path, capsys):
    command = ["evaluate", "--catalogue", str(shop), "--disable_tqdm", "True", "--model_name_or_path"]
    queries, numbers = str(tmp_path / "queries.parquet"), tmp_path / "metrics.json"
    files = ["--queries_file", queries, "--output_file", str(numbers), "--trec_dir", str(tmp_path / "trec")]
    assert main([*command, str(adapter), "--baseline", "base", "--by", "category", *files]) == 0
    shown = capsys.readouterr().out
    assert "to the baseline: RSUM" in shown or "than the baseline: RSUM" in shown
    assert "MAP@R" in shown and "category" in shown
    metrics = json.loads(numbers.read_text())
    trained = json.loads((adapter / "metrics.json").read_text())
    assert metrics["rsum"] == pytest.approx(trained["after"]["rsum"])
    assert metrics["baseline"]["rsum"] == pytest.approx(trained["before"]["rsum"])
    assert metrics["change"]["rsum"]["value"] == pytest.approx(metrics["rsum"] - metrics["baseline"]["rsum"])
    assert metrics["baseline"]["t2i_median_rank"] == trained["before"]["t2i_median_rank"]
    low, high = metrics["intervals"]["rsum"]
    assert low <= metrics["rsum"] <= high
    assert len(metrics["by"]["category"]) > 1

    assert main([*command, str(adapter), "--baseline", str(tmp_path / "trec")]) == 0
    assert "No difference shown to the baseline: RSUM +0.0" in capsys.readouterr().out
    # What was kept is compared with as well, and a model that is worse by more than chance fails the command.
    assert main([*command, str(adapter), "--baseline", queries, "--fail_on_regression", "True"]) == 0
    assert "No difference shown" in capsys.readouterr().out
    rows = QueryResults.load(queries)
    ranks = pyarrow.array([1] * len(rows.table), pyarrow.int32())
    best = rows.table.set_column(rows.table.column_names.index("rank"), "rank", ranks)
    QueryResults(best).save(queries)
    assert main([*command, str(adapter), "--baseline", queries, "--fail_on_regression", "True"]) == 3
    assert "Worse than the baseline" in capsys.readouterr().out
    fails(capsys, [*command, str(base), "--baseline", "base"], "is a checkpoint")
    fails(capsys, [*command, str(base), "--fail_on_regression", "True"], "needs a `--baseline`")
    fails(capsys, [*command, str(base), "--split", "validation", "--baseline", queries], "different queries")
    fails(capsys, [*command, str(base), "--by", "colour"], "`--by` names ['colour']", "category")


def test_search_by_text_and_by_picture(adapter, shop, capsys, tmp_path):
    picture = sorted((shop.parent / "images").glob("*.jpg"))[3]
    command = ["search", "--model_name_or_path", str(adapter), "--catalogue", str(shop), "--json"]
    command += ["--index_dir", str(tmp_path / "index")]
    assert main([*command, "--query", "red mug", "blue lamp", "--image", str(picture), "--top_k", "3"]) == 0
    first = capsys.readouterr().out
    lines = [json.loads(line) for line in first.splitlines()]
    assert [line["query"] for line in lines] == ["red mug", "blue lamp", str(picture)]
    assert all(len(line["hits"]) == 3 for line in lines)
    # A picture of the catalogue finds itself first, with a cosine of 1.
    assert picture.name in lines[2]["hits"][0]["image_id"]
    assert lines[2]["hits"][0]["score"] == pytest.approx(1, abs=1e-4)

    # The second time the index is read.
    assert main([*command, "--query", "red mug", "--top_k", "3"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [hit["product"] for hit in again["hits"]] == [hit["product"] for hit in lines[0]["hits"]]


def test_an_index_of_another_model_is_refused(adapter, base, shop, tmp_path, capsys):
    common = ["--catalogue", str(shop), "--index_dir", str(tmp_path / "index"), "--query", "mug", "--json"]
    assert main(["search", "--model_name_or_path", str(adapter), *common]) == 0
    fails(capsys, ["search", "--model_name_or_path", str(base), *common], "build the index anew")


def test_evaluate_prints_json_and_writes_a_file(adapter, shop, tmp_path, capsys):
    command = ["evaluate", "--model_name_or_path", str(adapter), "--catalogue", str(shop), "--json"]
    assert main([*command, "--output_file", str(tmp_path / "m.json")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "m.json").read_text())
    # The same products are held out as in the adaptation, and the same numbers come out.
    assert shown["rsum"] == pytest.approx(json.loads((adapter / "metrics.json").read_text())["after"]["rsum"])


def test_forgetting_measures_strengths_and_writes_the_recommended_one(adapter, shop, tmp_path, capsys):
    command = ["forgetting", "--model_name_or_path", str(adapter), "--catalogue", str(shop), "--disable_tqdm"]
    fails(capsys, command, "--general_file")
    command += ["--general_file", str(shop), "--scales", "0", "0.5", "1", "--output_file", str(tmp_path / "curve.png")]
    assert main([*command, "--output_dir", str(tmp_path / "half")]) == 0
    shown = capsys.readouterr().out
    assert "recommended" in shown and "On the test split" in shown
    assert "General corpus: " in shown and "quarantined." in shown
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    content = json.loads((tmp_path / "half" / "forgetting.json").read_text())
    assert [point["scale"] for point in content["points"]] == [0, 0.5, 1]
    model, processor = load_pretrained(tmp_path / "half")
    assert type(model).__name__ == "FusionMatchModel"
    adapted = load_pretrained(adapter)[0]
    base = {name: tensor.clone() for name, tensor in base_state_dict(adapted).items()}
    whole, scale = adapted.merge_and_unload().state_dict(), content["recommended"]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(
            tensor, torch.lerp(base[name], whole[name], scale) if tensor.is_floating_point() else tensor
        )
    tested = evaluate_retrieval(model, processor, load_catalogue(shop)["test"], disable_tqdm=True)["rsum"]
    assert content["test"][str(scale)] == pytest.approx(tested)
    card = (tmp_path / "half" / "README.md").read_text()
    assert f"the weights {scale:g} of the way" in card and "recommended" in card
    (tmp_path / "odd.csv").write_text("bild,legende\na.png,a red shoe\n")
    odd = [str(tmp_path / "odd.csv") if word == str(shop) else word for word in command[5:]]
    fails(capsys, [*command[:5], *odd], "The general corpus", "odd.csv", "rename them to `image`")
    # A checkpoint does not know what it was adapted from.
    command[2] = str(tmp_path / "half")
    fails(capsys, command, "--base")


@pytest.mark.parametrize(
    ("general", "caveat"),
    [
        ((300, 290, 280), None),
        ((300, 290, 150), "The strength 0.5 keeps 50% of the gain, less than the 95% asked for"),
        ((300, 200, 150), "None is recommended: each that gains loses more than 10%"),
    ],
)
def test_forgetting_says_where_less_is_recommended_than_was_asked_for(general, caveat):
    points = [Point(scale, 100 + 100 * scale, rsum) for scale, rsum in zip((0, 0.5, 1), general, strict=True)]
    args = ForgettingArguments()
    said = _caveat(points, recommend(points, args.keep, args.most_forgotten), args)
    assert said == [] if caveat is None else said[0].startswith(caveat)
    gains_nothing = [Point(0, 100, 300), Point(1, 90, 300)]
    assert _caveat(gains_nothing, recommend(gains_nothing), args)[0].startswith("No strength gains anything")


def test_explain_draws_hits_and_misses(adapter, shop, tmp_path, capsys):
    command = ["explain", "--model_name_or_path", str(adapter), "--catalogue", str(shop), "--disable_tqdm"]
    assert main([*command, "--output_file", str(tmp_path / "why.png"), "--num_examples", "1"]) == 0
    assert "miss: found this, the right one is at" in capsys.readouterr().out
    assert (tmp_path / "why.png").stat().st_size > 10_000
    fails(capsys, [*command, "--num_examples", "0"], "num_examples")
    fails(capsys, [*command, "--split", "tset"], "tset", "test")
