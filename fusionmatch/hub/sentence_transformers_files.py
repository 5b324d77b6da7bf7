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
"""
The files by which `SentenceTransformer`, and what is built on it, reads a FusionMatch checkpoint.

It would find out by itself how texts and pictures are embedded. With these files the embeddings are of length 1, as
everywhere in FusionMatch, and mteb, which looks at nothing else, knows that pictures can be embedded.
"""

import json
from typing import Any


def _features(method: str) -> dict[str, str]:
    return {"method": method, "method_output_name": "pooler_output"}


_CONTENTS: dict[str, Any] = {
    "modules.json": [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.base.modules.normalize.Normalize",
        },
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": _features("get_text_features"),
            "image": _features("get_image_features"),
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}
# Name -> content.
SENTENCE_TRANSFORMERS_FILES = {
    name: (json.dumps(content, indent=2) + "\n").encode() for name, content in _CONTENTS.items()
}
