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
Concepts of a catalogue: the words and attribute values that say what its products look like, and which of them occur
together. After CVSE (arXiv 2007.08883), which takes the commonest nouns, adjectives and verbs of a caption corpus.
"""

import html
import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from .columns import is_empty


FORMAT = "fusionmatch-concepts-1"
# Shares of the three parts of speech among the words of texts, as in CVSE.
SHARES = {"noun": 7, "adjective": 2, "verb": 1}

Tagger = Callable[[str], Iterable[tuple[str, str]]]


@dataclass
class ConceptBank:
    r"""
    Concepts and how often they occur, alone and together. `save` writes it as JSON to be read, and edited, by people.

    Args:
        words (`list[str]`):
            The concepts, q of them.
        kinds (`list[str]`):
            Of each `noun`, `adjective`, `verb`, or the name of the attribute column that it is a value of.
        counts (`list[int]`):
            In how many documents each occurs. A document is a row of the catalogue: its texts and attributes.
        together (`np.ndarray` of shape `(q, q)`):
            In how many documents two of them occur.
        documents (`int`):
            Number of documents.
        language (`str`, *optional*):
            Of the texts; `None` where none were looked at.
    """

    words: list[str]
    kinds: list[str]
    counts: list[int]
    together: np.ndarray = field(repr=False)
    documents: int
    language: str | None = None

    def __len__(self) -> int:
        return len(self.words)

    def graph(
        self, base: float = 5.0, shift: float = 0.02, threshold: float = 0.3, weight: float = 0.25
    ) -> np.ndarray:
        r"""
        The normalised adjacency of the concepts, (q, q), as CVSE builds it (arXiv 2007.08883, section 3.3, and its
        released code): $P_{ij} = E_{ij} / N_i$ from the counts; smoothed $s^{P - u} - s^{-u}$; 1 where that is at
        least t; what a concept j takes from its neighbours i, column j of A, shares the weight p; plus the concept
        itself; $D^{-1/2} A^T D^{-1/2}$, a row for what each concept takes.

        Args:
            base (`float`, *optional*, defaults to 5.0): s of the smoothing.
            shift (`float`, *optional*, defaults to 0.02): u of the smoothing.
            threshold (`float`, *optional*, defaults to 0.3): t, from which on two concepts are neighbours.
            weight (`float`, *optional*, defaults to 0.25): p, the weight of all neighbours together.
        """
        chance = self.together / np.maximum(np.asarray(self.counts, dtype=float), 1)[:, None]
        smooth = base ** (chance - shift) - base**-shift
        near = (smooth >= threshold).astype(float)
        np.fill_diagonal(near, 0)
        adjacency = near * weight / np.maximum(near.sum(axis=0, keepdims=True), 1e-6) + np.eye(len(self))
        root = 1 / np.sqrt(adjacency.sum(axis=1))
        return root[:, None] * adjacency.T * root[None, :]

    def label(self, dataset: datasets.Dataset, disable_tqdm: bool = False) -> datasets.Dataset:
        """
        The dataset with a column `concepts`: the words of the bank that a row's texts use or its attribute columns
        hold. The loss component `concept` learns from them.

        Args:
            dataset (`datasets.Dataset`):
                Rows with `texts`, and with the attribute columns whose values the bank holds.
            disable_tqdm (`bool`, *optional*, defaults to `False`):
                Whether to leave out the progress bar.

        Raises:
            `ImportError`: the tagger of the language is not installed.
            `ValueError`: an attribute column is missing.
        """
        known = set(self.words)
        finder = _Finder(dataset, sorted(set(self.kinds) - set(SHARES)), self.language)
        rows = tqdm(dataset.select_columns(finder.columns), desc="Labelling rows", disable=disable_tqdm)
        labels = [sorted(known & {word for word, _ in finder(row)}) for row in rows]
        if "concepts" in dataset.column_names:
            dataset = dataset.remove_columns("concepts")
        return dataset.add_column("concepts", labels, feature=datasets.List(datasets.Value("string")))

    def save(self, path: str | Path) -> Path:
        """Writes the bank as JSON and returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(self.words, self.kinds, self.counts, strict=True)
        first, second = np.nonzero(np.triu(self.together, 1))
        content = {
            "format": FORMAT,
            "language": self.language,
            "documents": self.documents,
            "concepts": [{"word": word, "kind": kind, "count": count} for word, kind, count in rows],
            # Two concepts and the documents that hold both. By name, so that a concept can be struck out above.
            "together": [
                [self.words[i], self.words[j], int(self.together[i, j])] for i, j in zip(first, second, strict=True)
            ],
        }

        def layout(value: Any) -> str:
            if not isinstance(value, list):
                return json.dumps(value, ensure_ascii=False)
            return "[" + ",".join(f"\n  {json.dumps(row, ensure_ascii=False)}" for row in value) + "\n ]"

        lines = ",\n".join(f' "{key}": {layout(value)}' for key, value in content.items())
        path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "ConceptBank":
        """
        Reads a bank that [`~ConceptBank.save`] wrote; concepts may have been struck out of its list.

        Raises:
            `FileNotFoundError`: there is no such file.
            `ValueError`: it holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no concept bank '{path}'. `fusionmatch concepts` makes one.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
            rows = content["concepts"]
            words, counts = [row["word"] for row in rows], [int(row["count"]) for row in rows]
            if len(set(words)) < len(words):
                raise ValueError("a word stands in it twice")
            together, index = np.diag(counts), {word: i for i, word in enumerate(words)}
            for first, second, count in content["together"]:
                if first in index and second in index:
                    together[index[first], index[second]] = together[index[second], index[first]] = count
            kinds = [row["kind"] for row in rows]
            return cls(words, kinds, counts, together, int(content["documents"]), content["language"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is no concept bank: {error}. `fusionmatch concepts` makes one.") from error


def build_concepts(
    dataset: datasets.Dataset,
    num_concepts: int = 300,
    *,
    attribute_columns: Sequence[str] = (),
    language: str | None = "en",
    min_count: int = 2,
    disable_tqdm: bool = False,
) -> ConceptBank:
    r"""
    Finds the concepts of a catalogue: all values of its attribute columns that occur often enough, then the commonest
    nouns, adjectives and verbs of its texts, 7 to 2 to 1.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `texts`, `product` and `source_row` (the schema of [`fusionmatch.catalogue`]). For an honest
            measurement, those of the training split.
        num_concepts (`int`, *optional*, defaults to 300):
            Most concepts; a small catalogue gives fewer.
        attribute_columns (`Sequence[str]`, *optional*):
            Columns such as colour and material, whose values are used as they are. Cells with several values are
            taken apart at `|`, `;`, `,`, `/` and line breaks.
        language (`str`, *optional*, defaults to `"en"`):
            Language of the texts, `en`, `de` or `ja`; `None` leaves the texts out.
        min_count (`int`, *optional*, defaults to 2):
            Documents that a concept occurs in at least.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to leave out the progress bar.

    Returns:
        [`ConceptBank`]

    Raises:
        `ImportError`: the tagger of the language is not installed; the message has the `pip install` line.
        `ValueError`: a column does not exist, an unknown language, or nothing is found.
    """
    if num_concepts < 1:
        raise ValueError(f"`num_concepts` must be at least 1, got {num_concepts}.")
    finder = _Finder(dataset, attribute_columns, language)
    kinds: dict[str, Counter] = defaultdict(Counter)
    seen: dict[tuple[str, int], set[str]] = {}
    texts_seen: dict[tuple[str, int], set[str]] = defaultdict(set)
    rows = dataset.select_columns([*finder.columns, "product", "source_row"])
    for row in tqdm(rows, desc="Finding concepts", disable=disable_tqdm):
        key = (row["product"], row["source_row"])
        # Further pictures of a row repeat its texts.
        new = dict.fromkeys(text for text in row["texts"] if text not in texts_seen[key])
        texts_seen[key].update(new)
        found = seen.setdefault(key, set())
        for word, kind in finder(row | {"texts": new}):
            kinds[word][kind] += 1
            found.add(word)
    documents = list(seen.values())
    counts = Counter(word for found in documents for word in found)
    # A value of an attribute column is that, however often texts use the word.
    kind_of = {
        word: next((name for name in attribute_columns if name in found), found.most_common(1)[0][0])
        for word, found in kinds.items()
    }
    words = _choose(counts, kind_of, num_concepts, min_count)
    if not words:
        raise ValueError(
            f"No concept occurs in {min_count} of the {len(documents)} documents. Name attribute columns, or lower "
            "`min_count`."
        )
    index = {word: i for i, word in enumerate(words)}
    together = np.zeros((len(words), len(words)), dtype=np.int64)
    for found in documents:
        held = [index[word] for word in found if word in index]
        together[np.ix_(held, held)] += 1
    return ConceptBank(
        words=words,
        kinds=[kind_of[word] for word in words],
        counts=[counts[word] for word in words],
        together=together,
        documents=len(documents),
        language=language,
    )


class _Finder:
    """Gives the words and attribute values of a row with what they are: part of speech, or the column."""

    def __init__(self, dataset: datasets.Dataset, attribute_columns: Sequence[str], language: str | None) -> None:
        missing = [name for name in attribute_columns if name not in dataset.column_names]
        if missing:
            raise ValueError(f"There is no attribute column {missing}; the columns are {dataset.column_names}.")
        self.attribute_columns = tuple(attribute_columns)
        self.columns = ["texts", *attribute_columns]
        self._tag = None if language is None else _tagger(language)
        # The rows of a product, and the pictures of a row, repeat their texts; they stand near each other.
        self._words = lru_cache(10_000)(self._find_words)

    def _find_words(self, text: str) -> list[tuple[str, str]]:
        tagged = () if self._tag is None else self._tag(html.unescape(text))
        return [(word, kind) for word, kind in tagged if any(letter.isalpha() for letter in word)]

    def __call__(self, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for column in self.attribute_columns:
            yield from ((value, column) for value in _values(row[column]))
        for text in row["texts"]:
            yield from self._words(text)


def _values(cell: Any) -> list[str]:
    if is_empty(cell):
        return []
    parts = [part.strip() for part in re.split(r"[|;,/\n]", html.unescape(str(cell)))]
    return list(dict.fromkeys(part.lower() for part in parts if not is_empty(part)))


def _choose(counts: Counter, kind_of: dict[str, str], limit: int, min_count: int) -> list[str]:
    # The commonest first; words that occur equally often in the order of the alphabet, so that two runs agree.
    common = sorted((word for word in counts if counts[word] >= min_count), key=lambda word: (-counts[word], word))
    chosen = [word for word in common if kind_of[word] not in SHARES][:limit]
    room = limit - len(chosen)
    for kind, share in SHARES.items():
        chosen += [word for word in common if kind_of[word] == kind][: room * share // sum(SHARES.values())]
    # What one part of speech cannot fill, the others do.
    taken = set(chosen)
    return chosen + [word for word in common if word not in taken][: limit - len(chosen)]


def _tagger(language: str) -> Tagger:
    """A function that gives the lemmas of a text's nouns, adjectives and verbs, with which they are."""
    taggers = {"en": _hanta, "de": _hanta, "ja": _janome}
    if language not in taggers:
        raise ValueError(f"There is no tagger for the language {language!r}; there are those for {sorted(taggers)}.")
    package = {"_hanta": "HanTa", "_janome": "janome"}[taggers[language].__name__]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"Parts of speech in the language {language!r} need the package {package}. Install it with: "
            'pip install "fusionmatch[concepts]"'
        )
    return taggers[language](language)


# Tags of the British National Corpus (English) and of STTS (German). Proper names, auxiliary and modal verbs are left
# out: they say nothing of what is seen.
_HANTA = {
    "en": ("morphmodel_en.pgz", {"NN0": "noun", "NN1": "noun", "NN2": "noun", "AJ0": "adjective"}, "VV"),
    "de": ("morphmodel_ger.pgz", {"NN": "noun", "ADJ": "adjective"}, "VV"),
}
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|[^\w\s]|\d+")


def _hanta(language: str) -> Tagger:
    from HanTa import HanoverTagger

    model, tags, verb = _HANTA[language]
    tagger = HanoverTagger.HanoverTagger(model)

    def tag(text: str) -> Iterator[tuple[str, str]]:
        for _, lemma, tag in tagger.tag_sent(_WORD.findall(text)):
            kind = "verb" if tag.startswith(verb) else next((k for t, k in tags.items() if tag.startswith(t)), None)
            if kind is not None and len(lemma) > 1:
                yield lemma.lower(), kind

    return tag


def _janome(language: str) -> Tagger:
    from janome.tokenizer import Tokenizer

    tokenizer = Tokenizer()
    kinds = {"名詞,一般": "noun", "名詞,サ変接続": "noun", "形容詞,自立": "adjective", "動詞,自立": "verb"}
    kinds |= {"名詞,形容動詞語幹": "adjective"}

    def tag(text: str) -> Iterator[tuple[str, str]]:
        for token in tokenizer.tokenize(text):
            kind = kinds.get(",".join(token.part_of_speech.split(",")[:2]))
            if kind is not None and token.base_form not in ("する", "なる", "ある", "いる"):
                yield token.base_form if token.base_form != "*" else token.surface, kind

    return tag
