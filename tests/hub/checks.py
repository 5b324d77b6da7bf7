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
"""What the tests of pushing and loading share: what a folder on the Hub holds, and what a process says of it."""

import re

import torch
from picklescan.scanner import scan_directory_path
from safetensors.torch import load_file

from ..core.tiny import tiny_inputs


PRIVATE = ("queries.parquet", "queries_before.parquet", "findings.jsonl", "quarantine.jsonl", "report.html")
LEFTOVERS = ("run.json", "losses.jsonl", "training_args.json", "optimizer.pt", "notes.txt")
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
# What `SentenceTransformer` reads; each push of a checkpoint brings them.
SENTENCE = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
CHECKPOINT = {"config.json", "model.safetensors"} | PROCESSOR | SENTENCE
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "fusionmatch_base.json", "README.md"} | PROCESSOR

# Loads a name and keeps what the model makes of some inputs.
EMBED = """if True:
    import json, sys, torch
    from safetensors.torch import save_file
    from fusionmatch.loading import load_pretrained
    from tests.core.tiny import tiny_inputs
    name, output, settings = sys.argv[1:4]
    model, processor = load_pretrained(name, **json.loads(settings))
    with torch.no_grad():
        outputs = model(**tiny_inputs())
    save_file({key: outputs[key].contiguous() for key in ("image_embeds", "text_embeds")}, output)
    print(type(model).__name__, type(processor).__name__, model.config.name_or_path)
"""


def pickles(folder):
    """Of the files at any depth, those that picklescan would scan, and those that begin as a pickle or an archive."""
    found = scan_directory_path(folder)
    assert not found.scan_err
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    starts = {path.name for path in files if re.match(rb"\x80[\x02-\x05]|PK\x03\x04", path.read_bytes()[:4])}
    return found.scanned_files, starts


def embeddings(model):
    with torch.no_grad():
        outputs = model(**tiny_inputs())
    return {name: outputs[name] for name in ("image_embeds", "text_embeds")}


def same(path, expected):
    found = load_file(path)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    return True


def fails(call, *words):
    """The command says in one line what is wrong, and exits with 1."""
    assert call.wait() == 1, call.text[-2000:]
    assert "Traceback" not in call.text
    message = call.text.strip().splitlines()[-1]
    assert message.startswith("fusionmatch "), call.text
    for word in words:
        assert word in message, message


def refuses(client, name, *words, **environment):
    """Loading says in one line what is wrong."""
    code = """if True:
        import sys
        from fusionmatch.loading import load_pretrained
        try:
            load_pretrained(sys.argv[1])
        except (OSError, ValueError) as error:
            print("REFUSED", error)
    """
    message = client.run(code, name, **environment).split("REFUSED ")[1].strip()
    assert "\n" not in message
    for word in words:
        assert word in message, message
