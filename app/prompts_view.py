"""The panels of the Prompts page: tasks and what fits, pairs with the model's answers, pairs of one's own."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import subject_sets, theme, url, widgets
from backend.analyses.pair_answers import summary
from backend.contract import Pair, Pairs
from backend.errors import BadInput, PhasescopeError
from backend.facade.prompt_sets import OWN
from backend.runs.prompt_sets import COLUMNS

SHOWN, LONG = 24, 24  # pairs in the table; tokens of a prompt above which the table leaves some out
TYPED, DRAFT = "own-pairs:typed", "own-pairs:draft"  # the widget's text; what outlives the widget
HOW = ("One pair a line: clean | corrupted | answer | distractor. Both prompts need as many tokens, both answers are "
       "one token. Spaces around | are left out; write · for a space that belongs to a word (often before an answer), "
       "⏎ for a new line.")  # fmt: skip


def pairs_shown(house: Any, card: dict[str, Any]) -> Pairs | None:
    """Draw the choice of pairs; None, after saying so, where no task fits."""
    if all(task["reason"] for task in house.tasks(card).values()):
        widgets.empty_state("No task fits this model", "The reasons stand beside. Write pairs of your own there, or "
                            "choose another model above.")
        return None
    return subject_sets.pairs_field(house, card, st.container())


def task_list(house: Any, card: dict[str, Any]) -> None:
    """Say of every task whether it fits the model, and why not."""
    st.markdown("##### Tasks")
    rows = []
    for task in house.tasks(card).values():
        fit = theme.badge("fits", "good") if not task["reason"] else theme.badge("not for this model")
        said = html.escape(task["reason"] or task["help"])
        title = html.escape(task["title"])
        rows.append(f'<div class="ps-row"><b>{title}</b>{fit}</div><div class="ps-note">{said}</div>')
    st.html("".join(rows))


# ---------------------------------------------------------------- pairs and answers


def answers(house: Any, key: str) -> None:
    """Show how the model answers the pairs: means with their errors, and pair by pair."""
    theme.badges(means(house.table(key, arrays=False)))
    for place, figure in zip(st.columns(2), ("means", "by_pair"), strict=True):
        place.plotly_chart(house.figure(key, figure), key=f"prompts:{figure}:{key}")


def pairs_in_full(house: Any, card: dict[str, Any], subject: Pairs, key: str | None) -> None:
    """Show the pairs as a table, with the model's answers once they are computed."""
    n = len(subject.pairs)
    st.markdown(f"##### The pairs: {n}" if n <= SHOWN else f"##### The first {SHOWN} of {n} pairs")
    st.html(pairs_table(house.tokenizer(card), subject, house.table(key, arrays=False) if key else None))
    st.caption("What differs is marked. P: probability of the answer; rank 0 is the largest logit; "
               "logit_diff = answer − distractor, at the last token.")


def means(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return badges: mean logit_diff with its standard error, clean and corrupted, and the share answered rightly."""
    found = summary(table).set_index("condition").to_dict("index")
    said = [(f"logit_diff {c} {with_error(found[c]['logit_diff'], found[c]['logit_diff_se'])}", "neutral")
            for c in ("clean", "corrupted")]  # fmt: skip
    right, error, n = (found["clean"][name] for name in ("right", "right_se", "n"))
    share = f" ({right:.0%} ± {error:.0%})" if 0 < right < 1 else ""
    return [*said, (f"clean prompt answered rightly: {round(right * n)} of {n}{share}", "neutral")]


def with_error(mean: float, error: float) -> str:
    """Return a mean with its standard error; without one where there is none."""
    return theme.number(mean) if pd.isna(error) else f"{theme.number(mean)} ± {theme.number(error)}"


def pairs_table(words: Any, subject: Pairs, table: pd.DataFrame | None) -> str:
    """Return the pairs as an HTML table of two rows each, with the model's answers where they are known."""
    heads = ["", "answer", "", "prompt", *(["logit_diff", "P", "rank", "top token"] if table is not None else [])]
    cells = {(r.condition, r.pair): r for r in table.itertuples()} if table is not None else {}
    rows = ["<tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>"]
    for i, pair in enumerate(subject.pairs[:SHOWN]):
        called = f"{_word(words, pair.answer)}<br>not {_word(words, pair.distractor)}"
        first = f'<td rowspan="2">{i}</td><td rowspan="2">{called}</td>'
        for which, prompt in subject_sets.chips(words, pair, LONG).items():
            said = _answers(words, cells[which, i]) if cells else []
            rows.append(f"<tr>{first}" + "".join(f"<td>{f}</td>" for f in (which, prompt, *said)) + "</tr>")
            first = ""
    return f'<div class="ps-scroll"><table class="ps-pairs">{"".join(rows)}</table></div>'


def _word(words: Any, token: int) -> str:
    return f'<span class="ps-chip">{html.escape(words.label(int(token)))}</span>'


def _answers(words: Any, row: Any) -> list[str]:
    return [theme.number(row.logit_diff), theme.number(row.answer_prob), theme.count(row.answer_rank),
            _word(words, row.top_id)]  # fmt: skip


# ---------------------------------------------------------------- pairs of one's own


def own_form(house: Any, card: dict[str, Any], shown: Pairs | None) -> None:
    """Write, check and keep pairs; what was typed stays whatever is wrong with it, also over pages and models."""
    st.markdown("##### Pairs of your own", help=HOW)
    if TYPED not in st.session_state:
        st.session_state[TYPED] = st.session_state.get(DRAFT, "")
    text = st.text_area("Pairs", key=TYPED, height=150, help=HOW, placeholder="clean | corrupted | answer | distractor")
    st.session_state[DRAFT] = text
    if shown:
        st.button("Start from the pairs shown", on_click=_fill, args=(house.tokenizer(card), shown), type="tertiary",
                  icon=":material/content_copy:")  # fmt: skip
    try:
        rows = read_lines(text)
        made = house.own_pairs(card, rows) if rows else None
    except PhasescopeError as error:
        widgets.error_panel(error)
        made = None
    if made:
        fit = "1 pair fits" if len(made.pairs) == 1 else f"{len(made.pairs)} pairs fit"
        st.caption(f":material/check: {fit} this model")
        _keep(house, card, rows)
    elif not text.strip():
        st.caption("Kept under a name, they can be chosen wherever pairs are asked for, and by a link.")
    _kept(house)


def read_lines(text: str) -> list[dict[str, str]]:
    """Read `clean | corrupted | answer | distractor`, a pair a line. Raises BadInput that names the line."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        parts = [part.strip().replace("·", " ").replace("⏎", "\n") for part in line.split("|")]
        if len(parts) != len(COLUMNS):
            found = f"it has {len(parts)} {'part' if len(parts) == 1 else 'parts'} between |, not {len(COLUMNS)}"
            raise BadInput(f"Line {number}", found, "Write clean | corrupted | answer | distractor")
        rows.append(dict(zip(COLUMNS, parts, strict=True)))
    return rows


def lines_of(words: Any, pairs: Sequence[Pair]) -> str:
    """Return pairs as the form takes them: `read_lines` of it gives the same tokens, where text goes round."""
    between = " " if words.kind in ("ids", "words") else ""

    def said(ids: Sequence[int]) -> str:
        return between.join(words.labels(ids))

    return "\n".join(" | ".join([said(p.clean), said(p.corrupted), said([p.answer]), said([p.distractor])])
                     for p in pairs)  # fmt: skip


def _fill(words: Any, shown: Pairs) -> None:
    st.session_state[TYPED] = st.session_state[DRAFT] = lines_of(words, shown.pairs[:SHOWN])


def _keep(house: Any, card: dict[str, Any], rows: list[dict[str, str]]) -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    name = left.text_input("Name", key="own-pairs:name", placeholder="my-pairs")
    replace = right.checkbox("Replace", key="own-pairs:replace", help="Overwrite pairs kept under this name")
    if widgets.pressed(st.button, "Keep", "own-pairs:keep", icon=":material/save:", type="primary"):
        try:
            url.put(task=house.keep_prompt_set(card, name.strip(), rows, replace))
        except PhasescopeError as error:
            widgets.error_panel(error)
        else:
            st.rerun()


def _kept(house: Any) -> None:
    """Of the chosen set: take it into the form, or delete it."""
    task = url.get("task") or ""
    if not task.startswith(OWN):
        return
    name = task.removeprefix(OWN)
    left, right = st.columns(2)
    left.button("Edit", key="own-pairs:edit", icon=":material/edit:", on_click=widgets.act, args=(_edit, house, name),
                help=f"Take {name} into the form above")
    right.button("Delete", key="own-pairs:delete", icon=":material/delete:", on_click=widgets.act,
                 args=(_delete, house, name), help=f"Forget {name}; results stay")


def _edit(house: Any, name: str) -> None:
    def field(value: Any) -> str:
        text = value if isinstance(value, str) else " ".join(map(str, value if isinstance(value, list) else [value]))
        return text.replace("\n", "⏎").replace(" ", "·") if text != text.strip() else text.replace("\n", "⏎")

    rows = house.prompt_set(name)["rows"]
    st.session_state[TYPED] = "\n".join(" | ".join(field(row[c]) for c in COLUMNS) for row in rows)
    st.session_state["own-pairs:name"] = name
    st.session_state["own-pairs:replace"] = True


def _delete(house: Any, name: str) -> None:
    house.delete_prompt_set(name)
    url.put(task=None)
