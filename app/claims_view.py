"""What experiments say: criterion, null, what was measured and the verdict, a line each that wraps."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from app import theme

VERDICTS = {"holds": "good", "fails": "bad", "met by its null": "warn"}
SAID = {"criterion": "criterion", "null": "its null", "value": "measured"}  # column of a claim: its words


def claims(rows: list[dict[str, str]]) -> None:
    """Draw what was expected beside its null, what was measured and the verdict."""
    if rows:
        st.markdown("##### What was expected", help="The original study's criterion, what would meet it without "
                    "anything having been learnt, what was measured here, and what follows.")  # fmt: skip
        table(rows, key="claims")


def table(rows: list[dict[str, str]], key: str, links: Sequence[str] = ()) -> None:
    """Draw claims, with the columns that stand before them (model, experiment); `links`: where the experiment of each
    row is looked at."""
    before = [c for c in rows[0] if c not in (*SAID, "verdict")]
    heads = [*before, "verdict", *SAID.values()]
    lines = "".join(_line(row, before, link) for row, link in zip(rows, links or [""] * len(rows), strict=True))
    st.html('<div class="ps-grid ps-claims"><table><tr>' + "".join(f"<th>{h}</th>" for h in heads) + f"</tr>{lines}"
            "</table></div>")  # fmt: skip
    st.download_button("CSV", pd.DataFrame(rows).to_csv(index=False), f"{key}.csv", "text/csv", key=f"csv:{key}",
                       icon=":material/download:")  # fmt: skip


def _line(row: Mapping[str, str], before: Sequence[str], link: str) -> str:
    cells = {name: html.escape(str(value)) for name, value in row.items()}
    if link and "experiment" in cells:
        cells["experiment"] = theme.anchor(link, cells["experiment"])
    first = "".join(f'<td class="ps-short">{cells[name]}</td>' for name in before)
    mark = theme.badge(row["verdict"], VERDICTS.get(row["verdict"], "neutral"))
    rest = "".join(f'<td data-label="{words}">{cells[name]}</td>' for name, words in SAID.items())
    return f'<tr>{first}<td class="ps-verdict">{mark}</td>{rest}</tr>'
