"""Links between pages, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

PAGES = Path(__file__).resolve().parent.parent / "pages"


def link(page: str, label: str, icon: str | None = None, query: dict[str, Any] | None = None) -> None:
    """Draw a link to pages/<page>.py; `query` is what its URL holds."""
    st.page_link(
        PAGES / f"{page}.py", label=label, icon=f":material/{icon}:" if icon else None, query_params=query or {}
    )
