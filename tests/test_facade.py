"""The facade on real models: keys, cards, jobs, sweeps, runs. Everything is computed in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import Backend
from backend.contract import Pair, Pairs, Problems, Prompt, Weights, parse_spec
from backend.errors import BadInput, NotFound, PhasescopeError, Unfit
from backend.jobs.state import new_job
from backend.models import registry
from backend.settings import SHIPPED_RUNS, Settings
from backend.store.store import Store
from tests import tiny_models
from tests.models_support import NATIVE, hf_folder, opened, run_folder
from tests.test_contract import GIVEN
from tests.test_models_hub import ONE, TWO, cache

PROMPT = Prompt(tokens=(1, 2, 3, 4, 1, 2, 3), text="seven tokens")
STEPS = (0, 10, 25)
LENS = {"top_k": 3, "target": None}


def settings_of(folder: Path, **more: Any) -> Settings:
    return Settings(cache=folder / "cache", runs=folder / "runs", device="cpu", **more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three checkpoints, a Hugging Face folder, nothing opened yet."""
    folder = tmp_path_factory.mktemp("facade")
    run_folder(folder / "runs" / "toy", steps=STEPS)
    hf_folder(folder / "gpt2", "gpt2")
    return folder


@pytest.fixture(scope="module")
def house(place: Path) -> Iterator[Backend]:
    made = Backend(settings_of(place), inline=True)
    yield made
    made.close()


def card_of(house: Backend, spec: str, step: int | None = None) -> dict[str, Any]:
    """Open a model and return its card."""
    first = house.open(spec, step)
    if first["card"] is None:
        ended = house.wait(first["job"]["id"], 180)
        assert ended["state"] == "done", ended["error"]
        first = house.open(spec, step)
    assert first["state"] == "kept"
    return first["card"]


def computed(house: Backend, analysis: str, card: dict[str, Any], subject: Any = PROMPT, **more: Any) -> str:
    """Ask, wait, and return the key of the kept result."""
    answer = house.ask(analysis, card, subject, **more)
    if answer["job"]:
        ended = house.wait(answer["job"]["id"], 180)
        assert ended["state"] == "done", ended["error"]
    assert house.has(answer["key"])
    return answer["key"]


# ---------------------------------------------------------------- open, ask, kept


def test_open_ask_kept(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    assert (card["step"], card["n_layers"], card["dtype"]) == (10, 2, "float32") and len(card["fingerprint"]) == 32
    assert house.kept("attention", card, PROMPT) is None
    key = computed(house, "attention", card)
    assert house.kept("attention", card, PROMPT) == key
    again = house.ask("attention", card, PROMPT)
    assert again == {"state": "kept", "key": key, "job": None}
    record = house.record(key)
    assert record["card"]["fingerprint"] == card["fingerprint"] and record["subject"]["tokens"] == list(PROMPT.tokens)


def test_the_same_request_computes_once_and_gives_the_same_numbers(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    key = computed(house, "logit_lens", card)
    before, jobs = house.table(key), len(house.jobs())
    computed(house, "logit_lens", card)
    assert len(house.jobs()) == jobs, "a kept result starts no job"
    assert house.delete([key]) == 1 and not house.has(key) and house.delete([key]) == 0
    assert computed(house, "logit_lens", card) == key
    pd.testing.assert_frame_equal(house.table(key), before, check_exact=True)
    assert len(house.jobs()) == jobs + 1
    again = house.ask("logit_lens", card, PROMPT, recompute=True)
    assert again["state"] != "kept" and house.wait(again["job"]["id"], 180)["state"] == "done"
    pd.testing.assert_frame_equal(house.table(key), before, check_exact=True)


# ---------------------------------------------------------------- the key


def key(
    house: Backend, card: dict[str, Any], subject: Any = PROMPT, analysis: str = "logit_lens", **params: Any
) -> str:
    """The key of asking the logit lens, or another analysis."""
    return house.request(analysis, card, subject, params).key


def test_the_key_changes_with_everything_that_changes_a_number(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    keys = [
        key(house, card),
        key(house, card, Prompt(tokens=(*PROMPT.tokens[:-1], 4), text=PROMPT.text)),
        key(house, card, Prompt(tokens=PROMPT.tokens[:-1], text=PROMPT.text)),
        key(house, card, top_k=9),
        key(house, card, target=1),
        key(house, card, analysis="attention"),
        key(house, {**card, "dtype": "float64"}),
        key(house, {**card, "device": "cuda:0"}),
        key(house, {**card, "fingerprint": "0" * 32}),
        house.request("logit_lens", card, PROMPT, {}).model_copy(update={"version": 99}).key,
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_does_not_change_with_anything_else(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    same = {
        key(house, card),
        key(house, card, Prompt(tokens=PROMPT.tokens, text="other words, equal tokens")),
        key(house, card, top_k=10),
        key(house, card, target=None, top_k=10),
        key(house, card, top_k=10, target=None),
        key(house, card, top_k="10"),
        key(house, {**card, "spec": "run:elsewhere", "step": 99, "source": "a copy", "notes": [], "seconds": 7.0}),
        key(house, {**card, "fidelity": {}, "memory_bytes": 1, "tokenizer": {"kind": "chars", "symbols": ["x"]}}),
    }
    assert len(same) == 1
    assert key(house, {**card, "device": "cuda:0"}) == key(house, {**card, "device": "cuda:1"})


def test_dtype_is_measured_not_only_named(place: Path, tmp_path: Path) -> None:
    """A house set to float64 opens the same weights to another key; its numbers differ in the last digits."""
    found = {}
    for dtype in ("float32", "float64"):
        made = Backend(Settings(cache=tmp_path / dtype, runs=place / "runs", device="cpu", dtype=dtype), inline=True)
        try:
            card = card_of(made, "run:toy", 10)
            assert card["dtype"] == dtype
            kept = computed(made, "logit_lens", card)
            found[dtype] = (kept, card["fingerprint"], made.table(kept)["log_prob"].to_numpy())
        finally:
            made.close()
    one, two = found["float32"], found["float64"]
    assert one[0] != two[0] and one[1] == two[1]
    assert np.allclose(one[2], two[2], atol=1e-4) and not np.array_equal(one[2], two[2])


def test_another_dtype_on_the_same_cache_opens_again(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "toy")
    for dtype in ("float32", "float64"):
        made = Backend(settings_of(tmp_path, dtype=dtype), inline=True)
        try:
            assert made.card("run:toy", 10) is None, "a card made under another dtype must not hold"
            assert card_of(made, "run:toy", 10)["dtype"] == dtype
        finally:
            made.close()


def test_two_revisions_of_a_hub_name_have_two_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache(tmp_path, {"main": ONE, "step3": TWO})
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        main, other = card_of(made, "hub:someone/tiny"), card_of(made, "hub:someone/tiny@step3")
        assert key(made, main) != key(made, other)
        assert key(made, other) == key(made, card_of(made, f"hub:someone/tiny@{TWO}"))
        (tmp_path / "hub" / "models--someone--tiny" / "refs" / "main").write_text(TWO)  # the branch moves
        assert made.card("hub:someone/tiny") is None
        assert key(made, card_of(made, "hub:someone/tiny")) == key(made, other)
    finally:
        made.close()


def test_one_weight_changes_the_key_and_the_place_does_not(house: Backend, place: Path, tmp_path: Path) -> None:
    card = card_of(house, f"dir:{place / 'gpt2'}")
    shutil.copytree(place / "gpt2", tmp_path / "another name")
    copied = card_of(house, f"dir:{tmp_path / 'another name'}")
    assert key(house, copied) == key(house, card)
    kept = computed(house, "attention", card)
    assert house.ask("attention", copied, PROMPT)["key"] == kept, "a copy is served from the same result"
    file = tmp_path / "another name" / "model.safetensors"
    nudge(file)
    assert house.card(f"dir:{tmp_path / 'another name'}") is None
    changed = card_of(house, f"dir:{tmp_path / 'another name'}")
    assert changed["fingerprint"] != card["fingerprint"]
    assert house.kept("attention", changed, PROMPT) is None, "no stale result for changed weights"


def nudge(file: Path) -> None:
    """Change one weight by its last bit."""
    state = load_file(file)
    name = sorted(n for n in state if state[n].ndim == 2)[0]
    changed = state[name].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(9.0))
    assert not torch.equal(changed, state[name])
    save_file({**state, name: changed}, file, metadata={"format": "pt"})


def test_equal_checkpoints_at_two_steps_are_one_result(house: Backend, place: Path) -> None:
    folder = run_folder(place / "runs" / "still", steps=(0,))
    files = folder / "checkpoints"
    shutil.copy(files / "step_00000000.safetensors", files / "step_00000050.safetensors")
    first, later = card_of(house, "run:still", 0), card_of(house, "run:still", 50)
    assert (first["step"], later["step"]) == (0, 50)
    kept = computed(house, "attention", first)
    assert house.ask("attention", later, PROMPT) == {"state": "kept", "key": kept, "job": None}


# ---------------------------------------------------------------- checkpoints


def test_siblings_get_their_cards_without_a_job(house: Backend, place: Path, tmp_path: Path) -> None:
    card_of(house, "run:toy", 10)
    jobs = len(house.jobs())
    cards = {step: house.open("run:toy", step)["card"] for step in STEPS}
    assert len(house.jobs()) == jobs and len({c["fingerprint"] for c in cards.values()}) == 3
    for step in (0, 25):
        real = opened(f"run:{place / 'runs' / 'toy'}", tmp_path, step=step).card
        assert cards[step]["fingerprint"] == real.fingerprint and cards[step]["step"] == step
        same = ("n_layers", "n_heads", "d_model", "d_vocab", "n_ctx", "n_params", "dtype", "device", "capabilities")
        assert [cards[step][n] for n in same] == [getattr(real, n) for n in same]
        assert [n for n in cards[step]["notes"] if "Fidelity" in n] == ["Fidelity was measured at step 10 of this run"]


def test_a_step_that_is_not_there_names_the_nearest(house: Backend) -> None:
    with pytest.raises(NotFound, match="Nearest checkpoints: 0, 10, 25"):
        house.open("run:toy", 11)
    with pytest.raises(NotFound, match="Known runs: .*toy"):
        house.open("run:nobody")
    with pytest.raises(BadInput, match="only a run has steps"):
        house.open("dir:/x", 3)


def test_a_sweep_has_its_step_column(house: Backend) -> None:
    card_of(house, "run:toy", 10)
    sweep = house.sweep("logit_lens", "run:toy", STEPS, PROMPT, {"top_k": 2})
    for job_id in [i for i in sweep["job_id"] if i]:
        house.wait(job_id, 180)
    table = house.sweep_table(sweep)
    assert table.columns[0] == "step" and sorted(table["step"].unique()) == list(STEPS)
    assert len(table) == 3 * 3 * len(PROMPT.tokens) * 2
    again = house.sweep("logit_lens", "run:toy", STEPS, PROMPT, {"top_k": 2})
    assert set(again["state"]) == {"kept"} and list(again["key"]) == list(sweep["key"])
    single = house.table(sweep["key"][1], arrays=False)
    part = table[table["step"] == STEPS[1]].drop(columns="step").reset_index(drop=True)
    pd.testing.assert_frame_equal(part, single, check_exact=True)


def test_weights_that_change_between_ask_and_run_fail_the_job(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "gpt2", tmp_path / "moving")
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        card = card_of(made, f"dir:{tmp_path / 'moving'}")
        nudge(tmp_path / "moving" / "model.safetensors")
        answer = made.ask("attention", card, PROMPT)
        ended = made.wait(answer["job"]["id"], 180)
        assert ended["state"] == "failed" and "weights" in ended["error"]["found"] and not made.has(answer["key"])
        assert any(ended["error"]["found"] in line["text"] for line in ended["story"])
        assert made.last_job(answer["key"])["id"] == ended["id"]
        fresh = card_of(made, f"dir:{tmp_path / 'moving'}")
        assert made.has(computed(made, "attention", fresh))
        assert made.wait(made.retry(ended["id"])["id"], 180)["state"] == "failed", "a retry tells the same"
    finally:
        made.close()


# ---------------------------------------------------------------- what is refused


def test_params_out_of_range_name_field_and_range(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    with pytest.raises(BadInput, match="top_k=99.*top_k is integer from 1 to 50") as caught:
        house.ask("logit_lens", card, PROMPT, {"top_k": 99})
    assert caught.value.exit_code == 2 and caught.value.http_status == 400
    with pytest.raises(BadInput, match="Params are: point, top_k, target, distractor"):
        house.ask("logit_lens", card, PROMPT, {"topk": 3})
    with pytest.raises(BadInput, match="target is integer from 0"):
        house.ask("logit_lens", card, PROMPT, {"target": "a"})
    with pytest.raises(NotFound, match="Known: .*attention, .*head_scores, .*logit_lens"):
        house.ask("attend", card, PROMPT)
    with pytest.raises(BadInput, match="steps=0.*steps is integer from 1 to 100000"):
        house.train("induction", {"steps": 0})
    with pytest.raises(BadInput, match="d_model = 64 cannot be divided by n_heads = 3"):
        house.train("induction", {"n_heads": 3})


def test_a_model_that_cannot_is_said(house: Backend) -> None:
    card = {**card_of(house, "run:toy", 10), "capabilities": ["unembed"]}
    with pytest.raises(Unfit, match="Attention needs attention patterns.*Choose another model or analysis"):
        house.ask("attention", card, PROMPT)


def test_prompts_that_do_not_fit_the_model(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    for text, ids, words in [("", "", "there are none"), ("hello", None, "no tokenizer"), ("", ",", "there are none"),
                             ("", "1,99", "vocabulary 0..19"), ("", "1," * 17, "too long by 1"), ("", "x", "no number"),
                             ("", [3, -1], "vocabulary"), ("", [[1]], "no number"), ("", [1.5], "no number"),
                             ("", [True], "no number")]:  # fmt: skip
        with pytest.raises(PhasescopeError, match=words):
            house.prompt(card, text, ids)
    assert house.prompt(card, "", [3, 4]).tokens == (3, 4) == house.prompt(card, "", "3 4").tokens
    chars = {**card, "tokenizer": {"kind": "chars", "symbols": ["a", "b"]}}
    assert house.prompt(chars, "ba").tokens == (1, 0)
    for text, words in [("", "it is empty"), ("abc", "symbol 'c' at position 2"), ("a" * 17, "too long")]:
        with pytest.raises(BadInput, match=words):
            house.prompt(chars, text)


# ---------------------------------------------------------------- parts of a result


def test_a_page_reads_one_head_only(house: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from backend.store import statements

    kept = computed(house, "attention", card_of(house, "run:toy", 10))
    whole = house.table(kept)
    read: list[int] = []
    blob_rows = statements.blob_rows

    def counted(*args: Any) -> Any:
        rows = blob_rows(*args)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(statements, "blob_rows", counted)  # only counts what the real one returns
    block = house.array(kept, "pattern", {"layer": 1, "head": 2})
    assert block.shape == (7, 7) and block.dtype == np.float16 and np.allclose(block.sum(1), 1, atol=2e-3)
    rows = whole[(whole["layer"] == 1) & (whole["head"] == 2)]
    assert np.array_equal(block, np.stack(list(rows["pattern"])))
    house.figure(kept, "head", {"layer": 1, "head": 2})
    drawn = house.figure(kept, "head", {"head": 3})
    assert read == [1, 1, 1], "one blob each time, never the tensor"
    assert "L0H3" in drawn.layout.title.text
    house.figure(kept, "overview")
    assert read == [1, 1, 1], "the overview reads no pattern"
    parts, small = house.thumbnails(kept, "pattern")
    assert len(parts) == 8 and small.dtype == np.uint8 and small.shape == (8, 7, 7)
    assert np.array_equal(small[parts.index({"layer": 1, "head": 2})], np.round(block.astype(np.float32) * 255))


def test_parts_that_are_not_there(house: Backend) -> None:
    kept = computed(house, "attention", card_of(house, "run:toy", 10))
    for ask in (lambda: house.array(kept, "pattern", {"layer": 9, "head": 0}), lambda: house.table("0" * 32),
                lambda: house.figure(kept, "nothing"), lambda: house.thumbnails("0" * 32, "pattern"),
                lambda: house.record("0" * 32), lambda: house.job("nobody"), lambda: house.sql("0" * 32)):  # fmt: skip
        with pytest.raises(NotFound):
            ask()


def test_every_figure_of_every_analysis_is_drawn(house: Backend) -> None:
    cards = [card_of(house, "run:toy", 10), card_of(house, "run:grokking-demo", 800),
             card_of(house, "run:rank1-5", 5000)]  # fmt: skip
    for name, one in house.analyses().items():
        if name in GIVEN:  # asks for something of the user's own: drawn in test_contract
            continue
        card = next(c for c in cards if not one.unfit(c["capabilities"]))
        if name == "published_numbers":  # known of these weights alone
            card = card_of(house, "tl:tracr_reverse", None)
        about = {"n": 4} if one.subject is Problems else {}
        subject = PROMPT if one.subject is Prompt else house.subject(one.subject, card, about)
        kept = computed(house, name, card, subject)
        for figure in one.figures:
            chosen = {"layer": 0, "head": 0, "pos": 1, "level": 2}
            assert json.loads(house.figure(kept, figure, chosen).to_json())["data"], (name, figure)


def test_answers_that_the_model_has_no_logit_for_are_refused_before_a_job(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    pairs = Pairs(pairs=(Pair(clean=(1, 2), corrupted=(1, 3), answer=10**6, distractor=2),))
    with pytest.raises(BadInput, match="Answer token 1000000"):
        house.ask("activation_patching", card, pairs, {})


def test_results_filter_pin_delete(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "toy")
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        card = card_of(made, "run:toy", 10)
        one, two = computed(made, "attention", card), computed(made, "logit_lens", card, params=LENS)
        assert set(made.results()["key"]) == {one, two} and made.count_results() == 2
        assert list(made.results(analysis="attention")["key"]) == [one]
        assert list(made.results(text="logit TOY")["key"]) == [two] and made.count_results(text="nowhere") == 0
        assert list(made.results(limit=1, offset=1)["key"]) != list(made.results(limit=1)["key"])
        made.pin(one, True)
        made.store.budget_bytes = 1
        made.store.evict()
        assert made.has(one) and not made.has(two)
        made.pin(one, False)
        with pytest.raises(NotFound):
            made.pin(two, True)
        counted = made.query(made.sql(one))
        assert len(counted) == len(made.table(one, arrays=False))
        with pytest.raises(BadInput, match="not reading"):
            made.query("DELETE FROM results")
        made.forget_model("run:toy")
        assert len(made.models()) == 0 and made.has(one)
    finally:
        made.close()


def test_a_result_of_an_older_version_is_listed_and_says_what_to_do(tmp_path: Path) -> None:
    run_folder(tmp_path / "runs" / "toy")
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        kept = computed(made, "logit_lens", card_of(made, "run:toy", 10))
        registered = made.analysis("logit_lens")
        registered.version += 1
        try:
            assert list(made.results()["key"]) == [kept] and made.record(kept)["version"] == registered.version - 1
            words = f"made by version {registered.version - 1}, now {registered.version}.*Compute it again"
            for ask in (made.table, made.sql, lambda k: made.figure(k, next(iter(registered.figures)))):
                with pytest.raises(NotFound, match=words):
                    ask(kept)
            assert made.kept("logit_lens", card_of(made, "run:toy", 10), PROMPT) is None
        finally:
            registered.version -= 1
        assert len(made.table(kept))
    finally:
        made.close()


# ---------------------------------------------------------------- jobs


def test_a_cancelled_job_can_be_asked_again(tmp_path: Path) -> None:
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        run = made.train("induction", small(steps=100_000), name="long")
        assert made.job_of_run("long")["id"] == run["job"]["id"]
        with pytest.raises(BadInput, match="a run of that name exists"):
            made.train("induction", small(steps=7), name="long")
        made.cancel(run["job"]["id"])
        ended = made.wait(run["job"]["id"], 180)
        assert ended["state"] == "cancelled" and made.last_job(ended["key"])["id"] == ended["id"]
        assert made.job_of_run("long") is None
    finally:
        made.close()


def test_unfinished_jobs_are_interrupted_and_go_on_after_a_restart(tmp_path: Path) -> None:
    made = Backend(settings_of(tmp_path), inline=True)
    first = made.train("induction", small(steps=60, n_checkpoints=10), name="cut")["job"]
    reach(made, "cut", 6)
    made.close()
    again = Backend(settings_of(tmp_path), inline=True)
    try:
        seen = again.job(first["id"])
        if seen["state"] != "done":  # the sixty steps may have ended before the close
            assert seen["state"] == "interrupted"
            assert again.wait(again.retry(first["id"])["id"], 180)["state"] == "done"
        assert again.run("cut")["last_step"] == 60 or until_state(again, "cut", "finished")["last_step"] == 60
    finally:
        again.close()


# ---------------------------------------------------------------- training


def small(**more: Any) -> dict[str, Any]:
    """Params of a run that takes a second."""
    return {"steps": 12, "d_model": 16, "n_heads": 2, "n_ctx": 16, "d_vocab": 8, "batch_size": 4, "n_checkpoints": 4,
            "log_every": 2, **more}


def reach(house: Backend, run: str, step: int) -> None:
    from tests.jobs_targets import until

    def there() -> bool:
        return any(r["name"] == run and r.get("last_step", 0) >= step and r["checkpoints"] for r in house.runs())

    until(there, f"{run} at step {step}")


def until_state(house: Backend, run: str, state: str) -> dict[str, Any]:
    from tests.jobs_targets import until

    until(lambda: house.run(run)["state"] == state, f"{run} {state}")
    return house.run(run)


def test_train_names_and_resume(tmp_path: Path) -> None:
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        started = made.train("induction", small(), name="mine")
        assert made.wait(started["job"]["id"], 180)["state"] == "done"
        info = until_state(made, "mine", "finished")
        assert info["last_step"] == 12 and info["params"]["steps"] == 12
        with pytest.raises(BadInput, match="a run of that name exists.*--resume"):
            made.train("induction", small(), name="mine")
        for name in ("../x", "/tmp/x", "a/b", ".hidden", "", " ", "a b", "x" * 81, "..", "a\n"):
            if name:
                with pytest.raises(BadInput, match="not a plain folder name"):
                    made.train("induction", small(), name=name)
        assert not (tmp_path / "x").exists()
        assert made.wait(made.resume_run("mine")["job"]["id"], 180)["state"] == "done"
        resumed = made.train("induction", {}, run_dir=str(tmp_path / "runs" / "mine"), resume=True)
        assert made.wait(resumed["job"]["id"], 180)["state"] == "done", "a default is no contradiction"
        other = made.train("induction", {"steps": 13}, run_dir=str(tmp_path / "runs" / "mine"), resume=True)
        ended = made.wait(other["job"]["id"], 180)
        assert ended["state"] == "failed" and ended["error"]["found"] == "it was started with 12"
        with pytest.raises(NotFound, match="there is no run"):
            made.train("induction", {}, run_dir=str(tmp_path / "nowhere"), resume=True)
        with pytest.raises(BadInput, match="not a run of a recipe on this machine"):
            made.resume_run(next(r["name"] for r in made.runs() if r.get("shipped")))
        metrics = made.metrics("mine", ["loss"])
        assert set(metrics["metric"]) == {"loss"} and metrics["step"].max() == 12
        card = card_of(made, "run:mine", 12)
        assert card["n_layers"] == 2 and made.has(computed(made, "head_scores", card, Weights(), params={"rows": 2}))
    finally:
        made.close()


def test_runs_without_a_name_get_a_free_one(tmp_path: Path) -> None:
    made = Backend(settings_of(tmp_path), inline=True)
    try:
        names = [made.train("induction", small(seed=3))["run"] for _ in range(3)]
        assert names == ["induction-seed3", "induction-seed3-2", "induction-seed3-3"]
        for job in made.jobs():
            made.cancel(job["id"])
    finally:
        made.close()


def test_health_and_notices(house: Backend) -> None:
    told = house.health()
    assert told["ok"] and told["workers"] == 1 and told["cache_bytes"] >= 0 and told["notices"] == []
    json.dumps(told)


def test_a_held_cache_says_by_whom(house: Backend, place: Path) -> None:
    with pytest.raises(PhasescopeError, match="it is open in process"):
        Backend(settings_of(place), inline=True)


def test_sizes_of_the_toy_are_what_the_card_says(house: Backend) -> None:
    card = card_of(house, "run:toy", 10)
    assert (card["d_vocab"], card["n_ctx"], card["n_heads"]) == (NATIVE["d_vocab"], NATIVE["n_ctx"], NATIVE["n_heads"])


def test_more_jobs_than_a_page_shows_are_all_interrupted_after_a_restart(tmp_path: Path) -> None:
    """The Jobs page lists 200; what is unfinished has no such limit."""
    chosen = tiny_models.settings(tmp_path)
    records = [new_job("analysis", f"k{i}", "Ask", {}).model_copy(update={"created": float(i)}) for i in range(260)]
    training = new_job("train", "t", "Train long", {"run_dir": str(tmp_path / "runs" / "long")})
    store = Store.open(chosen.cache, 10**9)
    for job in [training.model_copy(update={"created": 0.0}), *records]:
        store.put_job(job.record())
    store.close()
    with closing(Backend(chosen, inline=True)) as again:
        states = {j["state"] for j in again.store.jobs(limit=1000)}
        assert states == {"interrupted"}


def test_a_training_behind_many_asks_is_still_seen(tmp_path: Path) -> None:
    with closing(Backend(tiny_models.settings(tmp_path), inline=True)) as house:
        started = house.train("induction", {"steps": 3000}, name="long")
        for i in range(230):
            house.engine.submit("analysis", f"key{i}", "Ask", {"request": {}})
        job = house.job_of_run("long")
        assert job is not None and job["id"] == started["job"]["id"]
        with pytest.raises(BadInput, match="exists"):
            house.train("induction", {"steps": 50}, name="long")
        for one in house.engine.jobs():
            if not one.ended:
                house.cancel(one.id, force=True)


def test_a_sibling_of_another_architecture_is_no_sibling(tmp_path: Path) -> None:
    """Rewriting run.json means another model: cards of its other checkpoints no longer hold."""
    chosen = tiny_models.settings(tmp_path, dtype="float32")
    shutil.copytree(SHIPPED_RUNS / "induction-demo", chosen.runs / "copy")
    with closing(Backend(chosen, inline=True)) as house:
        opened = house.open("run:copy", 200)
        house.wait(opened["job"]["id"], 180)
        assert house.card("run:copy", 220) is not None
        record = json.loads((chosen.runs / "copy" / "run.json").read_text())
        record["model"]["config"]["n_ctx"] = 32
        (chosen.runs / "copy" / "run.json").write_text(json.dumps(record))
        assert house.card("run:copy", 240) is None


@pytest.mark.parametrize("made", [{"device": "cuda:0"}, {"rules": 0}])
def test_a_card_made_on_another_device_or_by_older_rules_does_not_hold(made: dict[str, Any], tmp_path: Path) -> None:
    chosen = tiny_models.settings(tmp_path, dtype="float32")
    with closing(Backend(chosen, inline=True)) as house:
        opened = house.open("run:induction-demo", 200)
        house.wait(opened["job"]["id"], 180)
        card = house.card("run:induction-demo", 200)
        assert card is not None
        located = registry.locate(parse_spec("run:induction-demo", 200), chosen)
        house.store.put_model(card.model_copy(update=made).model_dump(), located.signature)
        assert house.card("run:induction-demo", 200) is None


def test_text_and_ids_together_are_refused_and_empty_ids_are_empty(tmp_path: Path) -> None:
    with closing(Backend(tiny_models.settings(tmp_path), inline=True)) as house:
        card = {"tokenizer": {"kind": "ids"}, "d_vocab": 9, "n_ctx": 9}
        with pytest.raises(BadInput, match="both"):
            house.prompt(card, text="a", ids=[1])
        with pytest.raises(BadInput, match="(?i)none|empty|no token"):
            house.prompt(card, ids=[])
