"""Runs of one group stand on Home as one line."""

from __future__ import annotations

from app.run_groups import folded


def run(name: str, state: str = "finished", **more: str) -> dict:
    return {"name": name, "state": state, "last_step": 3, **more}


def test_a_diagrams_cells_are_one_line_that_leads_to_it_and_a_single_run_is_itself() -> None:
    cells = [run("d.x0y0s0", "running", group="d"), run("d.x1y0s0", group="d"), run("d.x1y1s0", "queued")]
    lines = folded([*cells, run("alone"), run("pair.0", group="pair"), run("pair.1", group="pair"), run("x.0")])
    assert [line["label"] for line in lines] == ["d (3 runs)", "alone", "pair (2 runs)", "x.0"]
    assert lines[0]["state"] == "1 running, 1 finished, 1 queued"
    assert (lines[0]["page"], lines[0]["query"]) == ("phase_diagram", {"diagram": "d"})
    assert (lines[1]["page"], lines[1]["query"], lines[1]["run"]["last_step"]) == ("training", {"runs": "alone"}, 3)
    assert lines[2]["query"] == {"runs": "pair.0,pair.1"}
