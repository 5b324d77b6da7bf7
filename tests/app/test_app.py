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
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec

import pytest
from PIL import Image

from fusionmatch.app import CatalogueSearch, model_names, write_space
from fusionmatch.app.page import _plain
from fusionmatch.catalogue import read_catalogue
from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.commands import main
from fusionmatch.loading import load_pretrained
from fusionmatch.search import CatalogueIndex

from ..core.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=24, image_size=48, faults=False)


@pytest.fixture(scope="module")
def dataset(shop):
    return read_catalogue(shop).dataset


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        tiny_model(seed=seed).save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    return model_names([str(folder / "first"), str(folder / "second")])


def test_names_are_short_and_differ(tmp_path):
    for name in ("a/adapter", "b/adapter"):
        (tmp_path / name).mkdir(parents=True)
    paths = [str(tmp_path / "a" / "adapter"), str(tmp_path / "b" / "adapter"), "org/model"]
    assert model_names(paths) == dict(zip(["adapter", "adapter (2)", "org/model"], paths, strict=True))


def test_each_model_searches_as_it_would_alone(models, dataset, tmp_path):
    search = CatalogueSearch(models, dataset, tmp_path / "index")
    picture = dataset[5]["image"]
    for name, path in models.items():
        alone = CatalogueIndex.build(*load_pretrained(path), dataset)
        for query in ("a red boot", picture):
            assert search.search(name, query, 4) == alone.search(query, 4)
    assert search.search("first", picture, 1)[0].product == dataset[5]["product"]
    assert search.precisions("first") == []
    # Embedded once: what lies in the folder is what is used the next time.
    assert (tmp_path / "index" / "first" / "index.json").is_file()
    again = CatalogueSearch(models, dataset, tmp_path / "index")
    assert again.search("first", "a red boot", 4) == search.search("first", "a red boot", 4)
    other = CatalogueSearch(models, dataset.select(range(5)), tmp_path / "index")
    with pytest.raises(ValueError, match="that of another catalogue"):
        other.search("first", "a red boot")
    with pytest.raises(ValueError, match="no model 'third'; there are first, second"):
        search.search("third", "a red boot")
    with pytest.raises(ValueError, match="nothing to search with"):
        CatalogueSearch({}, dataset)


def test_a_space_holds_all_that_it_needs(models, dataset, shop, tmp_path, capsys):
    command = ["demo", str(shop), "--model_name_or_path", *models.values(), "--space_dir", str(tmp_path / "space")]
    assert main([*command, "--title", 'A "small" shop']) == 0
    assert "hf upload" in capsys.readouterr().out
    folder = tmp_path / "space"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"app.py", "README.md", "requirements.txt", "demo.json", "catalogue.parquet"} <= names
    assert "models/second/model.safetensors" in names
    assert 'title: "A \\"small\\" shop"' in (folder / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in (folder / "demo.json").read_text(encoding="utf-8")
    # Read as the page reads it: the same rows in the same order.
    options = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    columns = {name: options[name] for name in ("image_column", "caption_column", "group_column")}
    read = read_catalogue(folder / "catalogue.parquet", **columns).dataset
    assert list(read["product"]) == list(dataset["product"])
    assert list(read["texts"]) == list(dataset["texts"])
    with pytest.raises(FileExistsError, match="is not empty"):
        write_space(folder, models, dataset, "again")
    # By itself the title is the catalogue's name, not where it lies.
    command[-1] = str(tmp_path / "untitled")
    assert main(command) == 0
    assert 'title: "products.csv"' in (tmp_path / "untitled" / "README.md").read_text(encoding="utf-8")
    for file in tmp_path.glob("untitled/**/*.*"):
        assert str(tmp_path.parent).encode() not in file.read_bytes(), file
    assert main([*command, "--language", "de"]) == 1
    capsys.readouterr()
    assert main(["demo", str(shop)]) == 1
    assert "Name what to search with" in capsys.readouterr().err


def ask(url, *data):
    """The answer of the running page, by the two calls that its own script makes."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{url}/gradio_api/call/search", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        event = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/search/{event}") as answer:
        lines = answer.read().decode().splitlines()
    return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))


@pytest.mark.skipif(find_spec("gradio") is None, reason='gradio is not installed: pip install "fusionmatch[demo]"')
def test_the_page_answers(models, dataset, shop):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model_name_or_path", *models.values(), "--language", "ja", "--port", str(port)]
    command = [sys.executable, "-m", "fusionmatch", "demo", str(shop), *options]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as page:
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"{url}/config") as answer:
                        content = json.loads(answer.read())
                    break
                except urllib.error.URLError:
                    assert page.poll() is None, page.stdout.read()
                    assert time.monotonic() < until
                    time.sleep(0.2)
            words, every = "何をお探しですか？", "すべて表示"
            assert words in [part["props"].get("label") for part in content["components"]]
            event, (gallery, *_) = ask(url, "a red boot", None, "second", 12, every)
            assert event == "complete"
            wanted = CatalogueSearch(models, dataset).search("second", "a red boot", 12)
            shown = [item["caption"].split(" · ")[0] for item in gallery]
            assert shown == [f"{hit.rank}. {hit.product}" for hit in wanted]
            with urllib.request.urlopen(gallery[0]["image"]["url"]) as answer, Image.open(answer) as picture:
                assert picture.size == (48, 48)
            assert ask(url, " ", None, "second", 12, every)[0] == "error"
        finally:
            page.terminate()


def test_texts_of_a_catalogue_are_shown_and_never_run():
    assert _plain("![p](http://x) <b> # 1_2") == r"\!\[p\]\(http://x\) \<b\> \# 1\_2"


def test_without_gradio_the_remedy_is_named():
    program = "import sys; sys.modules['gradio'] = None; from fusionmatch.app import build_app; build_app(None, 'x')"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert 'pip install "fusionmatch[demo]"' in run.stderr
