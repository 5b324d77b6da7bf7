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
"""The page itself, in Gradio."""

import re
from typing import Any

from PIL import Image

from ..report.words import Words
from ..search import Hit
from .catalogue_search import CatalogueSearch


_RESULTS = (12, 24, 48)
_STYLE = """
.gradio-container { max-width: 76rem !important; margin: 0 auto; }
#results .caption-label { white-space: normal; }
#results .grid-wrap { max-height: none; }
@media (max-width: 40rem) { #results .grid-container { grid-template-columns: 1fr 1fr !important; } }
"""


def build_app(search: CatalogueSearch, title: str, language: str = "en") -> Any:
    """
    Builds the page.

    Args:
        search ([`CatalogueSearch`]): What it searches, and with what.
        title (`str`): Its heading.
        language (`str`, *optional*, defaults to `"en"`): `en` or `ja`; queries may be in any language the model reads.

    Returns:
        `gradio.Blocks`: to be launched with [`launch_options`].

    Raises:
        `ImportError`: gradio is not installed.
        `ValueError`: there is no such language.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError('The page needs gradio. Install it with: pip install "fusionmatch[demo]".') from error
    t = Words(language)
    names = list(search.models)
    every = t("demo_show_all")

    def precisions(name: str) -> Any:
        choices = [every, *search.precisions(name)]
        return gr.update(choices=choices, value=every, visible=len(choices) > 1)

    def find(query: Any, name: str, count: int, precision: str) -> tuple[Any, ...]:
        """What stands in `outputs` for a query; the last one is kept, so that another model can be asked the same."""
        if query is None:
            raise gr.Error(t("demo_empty"), duration=5)
        hits = search.search(name, query, int(count))
        gallery = [(search.picture(hit.row), _caption(hit)) for hit in hits]
        carried = None if precision == every else search.carried(name, hits, precision)
        said = t("demo_not_carried", precision=f"{float(precision):.0%}") if carried is False else ""
        first = t("demo_probability", probability=f"{hits[0].probability:.0%}") if hits[0].probability else ""
        return gallery, hits, query, said or first, "", gr.update(visible=False)

    def ask(text: str, picture: Image.Image | None, name: str, count: int, precision: str) -> tuple[Any, ...]:
        # A text that was typed is meant, also where an older picture is still there.
        return find(text.strip() or picture, name, count, precision)

    def show(hits: list[Hit], event: gr.SelectData) -> tuple[Any, ...]:
        hit = hits[event.index]
        texts = "\n\n".join(f"> {_plain(text)}" for text in search.dataset[hit.row]["texts"])
        more = t("demo_details", image_id=_plain(hit.image_id), score=f"{hit.score:.3f}")
        details = f"### {_plain(hit.product)}\n\n{texts}\n\n{more}"
        return details, hit.row, gr.update(visible=True)

    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.Markdown(f"# {_plain(title)}\n\n{t('demo_intro', pictures=f'{len(search.dataset):,}')}")
        hits, query, chosen = gr.State([]), gr.State(None), gr.State(None)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                text = gr.Textbox(
                    label=t("demo_text"), placeholder=t("demo_placeholder"), elem_id="query", autofocus=True
                )
                picture = gr.Image(label=t("demo_picture"), type="pil", height=170, sources=["upload", "clipboard"])
                go = gr.Button(t("demo_search"), variant="primary", elem_id="go")
                model = gr.Dropdown(names, value=names[0], label=t("demo_model"), elem_id="model")
                with gr.Row():
                    count = gr.Dropdown(list(_RESULTS), value=_RESULTS[0], label=t("demo_count"), min_width=100)
                    precision = gr.Dropdown([every], value=every, label=t("demo_precision"), visible=False)
            with gr.Column(scale=5, min_width=300):
                said = gr.Markdown(elem_id="said")
                gallery = gr.Gallery(
                    show_label=False,
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    buttons=[],
                    interactive=False,
                    elem_id="results",
                )
                details = gr.Markdown(elem_id="details")
                similar = gr.Button(t("demo_similar"), visible=False, elem_id="similar")
        outputs = [gallery, hits, query, said, details, similar]
        settings = [model, count, precision]
        gr.on([text.submit, go.click], ask, [text, picture, *settings], outputs, api_name="search")
        picture.upload(find, [picture, *settings], outputs, api_name=False)
        gallery.select(show, [hits], [details, chosen, similar], api_name=False)

        def like_it(row: int, *settings: Any) -> tuple[Any, ...]:
            return find(search.picture(row), *settings)

        similar.click(like_it, [chosen, *settings], outputs, api_name=False)

        # The same question again with another model is what a person wants to see.
        def again(query: Any, name: str, count: int, precision: str) -> tuple[Any, ...]:
            if query is None:
                return [], [], None, "", "", gr.update(visible=False)
            return find(query, name, count, precision)

        gr.on([count.change, precision.change], again, [query, *settings], outputs, api_name=False)
        chosen_model = model.change(lambda name: precisions(name), model, precision, api_name=False)
        # Thresholds are those of the model, so all is shown until one of them is chosen.
        chosen_model.then(lambda *asked: again(*asked, every), [query, model, count], outputs, api_name=False)
        app.load(lambda: precisions(names[0]), None, precision, api_name=False)
    return app


def launch_options() -> dict[str, Any]:
    """What a page is launched with: its looks, and nothing that is fetched from or told to anybody."""
    return {"css": _STYLE, "share": False, "footer_links": [], "quiet": True}


def _plain(text: str) -> str:
    """A text of the catalogue as it is: nothing in it is a link, a picture or a heading."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~$&-])", r"\\\1", " ".join(text.split()))


def _caption(hit: Hit) -> str:
    sure = hit.match if hit.probability is None else hit.probability
    return f"{hit.rank}. {hit.product} · " + (f"{hit.score:.3f}" if sure is None else f"{sure:.0%}")
