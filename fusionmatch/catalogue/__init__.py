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
The catalogue room: a company's files in, one clean [`datasets.DatasetDict`] and a quarantine file out.

It knows no model and loads neither torch nor transformers.
"""

from .columns import Columns, join_texts
from .concepts import ConceptBank, build_concepts
from .doctor import examine
from .intake import Intake, load_catalogue, read_catalogue
from .quarantine import QuarantinedRow
from .splits import split_products
from .unpaired import add_unpaired_images, hide_pairs, read_unpaired_texts


__all__ = [
    "Columns",
    "ConceptBank",
    "Intake",
    "QuarantinedRow",
    "add_unpaired_images",
    "build_concepts",
    "examine",
    "hide_pairs",
    "join_texts",
    "load_catalogue",
    "read_catalogue",
    "read_unpaired_texts",
    "split_products",
]
