"""The frame of every page: navigation, style, carried state; an automatic page per analysis that has none."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app import auto_page, house, notes, theme, url, widgets  # noqa: E402
from app.links import PAGES  # noqa: E402
from backend.errors import Broken, PhasescopeError  # noqa: E402

st.set_page_config(page_title="Phasescope", page_icon=str(ROOT / "app" / "favicon.svg"), layout="wide")


def _page(name: str, title: str, icon: str) -> st.Page:
    return st.Page(PAGES / f"{name}.py", title=title, icon=f":material/{icon}:", url_path=name)


explore = [
    _page("models", "Models", "deployed_code"),
    _page("attention", "Attention", "grid_on"),
    _page("logit_lens", "Logit lens", "layers"),
    _page("intervene", "Intervene", "tune"),
    _page("compare", "Compare", "compare"),
    _page("prompts", "Prompts", "compare_arrows"),
]
auto: dict[str, list[st.Page]] = {}  # an automatic page per analysis that has none, under the group that it names
for one in house.backend().analyses().values():
    if not (PAGES / f"{one.name}.py").exists():
        auto.setdefault(one.group, []).append(auto_page.page(one))
features = auto.setdefault("Neurons & features", [])
features.insert(0, _page("sae_features", "Features of an SAE", "auto_awesome"))
features.append(_page("pca_directions", "Directions by PCA", "explore"))
energies = auto.pop("Energy landscapes", [])
auto.setdefault("Spectra", []).insert(0, _page("spectra", "Spectra", "ssid_chart"))
chosen = st.navigation(
    {
        "": [st.Page(PAGES / "home.py", title="Home", icon=":material/home:", default=True)],
        "Explore": [*explore, *auto.pop("Explore", [])],
        "Training": [
            _page("training", "Training", "monitoring"),
            _page("phase_diagram", "Phase diagram", "grid_view"),
            *auto.pop("Training", []),
        ],
        **auto,
        "Energy landscapes": [
            _page("energy_landscapes", "Energy landscapes", "landscape"),
            _page("experiment_queue", "Experiment queue", "playlist_play"),
            *energies,
        ],
        "Results": [
            _page("results", "Results", "inventory_2"),
            _page("published_numbers", "Published numbers", "fact_check"),
            _page("jobs", "Jobs", "pending_actions"),
            _page("glossary", "Glossary", "menu_book"),
        ],
    },
    expanded=True,
)
theme.style()
url.carry(chosen.url_path)
for notice in house.backend().notices:
    st.warning(notice, icon=":material/info:")
widgets.problem_of_callback()
notes.here()
try:
    chosen.run()
except PhasescopeError as error:
    widgets.error_panel(error)
except Exception as error:
    logging.getLogger(__name__).exception("page %s", chosen.title)
    ours = Broken(f"Page {chosen.title}", f"an error of ours: {error}", "Reload; if it stays, report the details")
    widgets.error_panel(ours, "".join(traceback.format_exception(error)))
