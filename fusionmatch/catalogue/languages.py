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
"""What language texts are in."""

from collections import Counter
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


UNDETERMINED = "und"
# Of captions in five languages and of shops' texts none was told wrongly that was told with this probability.
_SURE = 0.95
# Share of what is told surely; with less a language is none of the catalogue's own.
_SHARE = 0.01


def languages_of(texts: Collection[str]) -> tuple[list[str], np.ndarray]:
    """
    The language of each text, told by its letters (py3langid). Of a text that is too short for that it is the
    likeliest one of those that others are in.

    Args:
        texts (collection of `str`):
            Texts of one catalogue, gone through twice.

    Returns:
        `tuple[list[str], np.ndarray]`: ISO 639 codes, `und` for a text without letters and where no text is long
        enough; and which texts tell it themselves, (texts,).
    """
    identifier = _identifier()
    codes, sure = [], np.zeros(len(texts), dtype=bool)
    for at, text in enumerate(texts):
        language, probability = identifier.classify(text) if _has_letters(text) else (UNDETERMINED, 0.0)
        codes.append(language)
        sure[at] = probability >= _SURE
    counts = Counter(code for code, told in zip(codes, sure.tolist(), strict=True) if told)
    own = [code for code, count in counts.items() if count >= _SHARE * counts.total()]
    try:
        # All that is known where nothing is told: no restriction then, and no answer either.
        identifier.set_languages(own or None)
        for at, text in enumerate(texts):
            if not sure[at]:
                codes[at] = identifier.classify(text)[0] if own and _has_letters(text) else UNDETERMINED
    finally:
        identifier.set_languages(None)
    return codes, sure


def _has_letters(text: str) -> bool:
    return any(character.isalpha() for character in text)


@cache
def _identifier() -> "LanguageIdentifier":
    """Read when the first text is; that takes a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
