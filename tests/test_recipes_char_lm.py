"""char_lm: the text is what run.json says, the schedule depends on the step alone, the run opens and resumes."""

import hashlib
import math
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from backend.errors import BadInput, Cancelled
from backend.models.tokens import Chars
from backend.runs import corpus, layout, recipes, schedule
from backend.runs.folder import RunFolder
from backend.runs.recipes import char_lm
from backend.runs.train import train
from tests.recipe_kit import assert_resumes_alike, assert_stops_within_one_step, assert_words_for_all, go_on, stop_at

SMALL = {"steps": 24, "n_layers": 1, "n_heads": 2, "d_model": 16, "n_ctx": 16, "batch_size": 4, "warm_up": 5,
         "log_every": 5, "monitor_every": 10, "n_checkpoints": 4, "max_characters": 20_000}  # fmt: skip


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chars") / "straight"
    train("char_lm", SMALL, folder, False, go_on)
    return folder


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("It was a dark and stormy night; \n" * 200, encoding="utf-8")
    return path


# ---------------------------------------------------------------- the text


def test_the_standard_library_is_read_in_a_fixed_order():
    data = corpus.load("", 50_000)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"), key=lambda p: p.name)
    words = "".join(p.read_text(encoding="utf-8", errors="replace") for p in files[: data.source["files"]])[:50_000]
    assert data.source["characters"] == len(data.ids) == 50_000
    assert data.source["sha256"] == hashlib.sha256(words.encode()).hexdigest()
    known = set(data.symbols)
    assert "".join(data.symbols[i] for i in data.ids) == "".join(c if c in known else corpus.OTHER for c in words)
    first, rest = data.parts
    assert len(first) == 45_000 and np.array_equal(np.concatenate([first, rest]), data.ids)


def test_rare_and_unseen_characters_are_one_symbol():
    words = "ab" * 10 + "é" * 9 + "\U0001f600" * 12
    symbols = corpus.vocabulary(words)
    assert symbols == ["a", "b", "\U0001f600", corpus.OTHER]
    assert corpus.encode("bé\U0001f600Ωa", symbols).tolist() == [1, 3, 2, 3, 0]
    assert Chars(symbols).encode("ab") == [0, 1]
    with pytest.raises(BadInput, match="not among its 4 characters"):
        Chars(symbols).encode("aé")


def test_a_vocabulary_keeps_the_most_frequent():
    words = "".join(chr(0x4E00 + i) * (10 + i) for i in range(300))
    symbols = corpus.vocabulary(words)
    assert len(symbols) == 256 and symbols[0] == chr(0x4E00 + 45) and symbols[-2] == chr(0x4E00 + 299)


def test_a_file_by_its_path(book):
    data = corpus.load(str(book), 3000)
    assert data.source["text"] == "book.txt" and len(data.ids) == 3000
    assert "".join(data.symbols[i] for i in data.ids[:9]) == "It was a "


@pytest.mark.parametrize(("content", "words"), [
    (None, "no such file"),
    (b"short", "it has only 5 characters"),
    (b"\xff\xfe\x00binary" * 500, "byte 0 is no UTF-8 text"),
    (b"plain\0zero" * 500, "character 5 is a zero byte"),
])  # fmt: skip
def test_files_that_are_no_text_are_refused(tmp_path, content, words):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        corpus.load(str(path), 10_000)


def test_a_folder_and_a_huge_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="a folder"):
        corpus.load(str(tmp_path), 10_000)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(corpus.MOST_BYTES + 1)  # sparse: takes no room
    with pytest.raises(BadInput, match="200 MB is more than 200 MB"):
        corpus.load(str(tmp_path / "huge"), 10_000)


def test_a_text_too_short_for_its_context_is_refused(tmp_path, book):
    with pytest.raises(BadInput, match="no longer than n_ctx = 512"):
        given = {**SMALL, "text": str(book), "n_ctx": 512, "max_characters": 4000}
        train("char_lm", given, tmp_path / "r", False, go_on)


# ---------------------------------------------------------------- model and schedule


def test_rates_are_the_closed_form():
    p = char_lm.CharParams(steps=2000)
    rates = [char_lm.rate(p, step) for step in range(1, 2001)]
    assert rates[:100] == pytest.approx([1e-3 * step / 100 for step in range(1, 101)])
    assert rates[-1] == pytest.approx(1e-4) and rates[1049] == pytest.approx(5.5e-4)
    assert all(a > b for a, b in zip(rates[99:], rates[100:], strict=False))
    assert rates[574] == pytest.approx(1e-4 + 4.5e-4 * (1 + math.cos(math.pi / 4)))
    dropped = char_lm.CharParams(steps=2000, lr_drop_at=500, lr_drop_factor=0.5)
    assert char_lm.rate(dropped, 500) == rates[499] and char_lm.rate(dropped, 501) == rates[500] / 2
    assert schedule.cosine(3, 3, 1.0, 0.0, 10) == 0.3  # a run that ends in its warm-up


@pytest.mark.parametrize(("n_layers", "d_model", "n_heads"), char_lm.LADDER)
def test_the_ladder_has_its_sizes(n_layers, d_model, n_heads):
    p = char_lm.CharParams(n_layers=n_layers, d_model=d_model, n_heads=n_heads)
    with torch.device("meta"):
        from transformers import GPT2Config, GPT2LMHeadModel

        config = {k: v for k, v in char_lm.model_config(p, 100).items() if k not in ("model_type", "architectures")}
        model = GPT2LMHeadModel(GPT2Config(**config))
    assert sum(w.numel() for w in model.parameters()) == char_lm.n_params(p, 100)


def test_matrices_decay_and_nothing_else_does():
    model = char_lm.build(char_lm.CharParams(**SMALL), 50)
    decayed, plain = char_lm.decay_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(names[id(p)].endswith(("weight",)) and ".ln_" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_first_weights_come_from_the_seed_and_leave_the_world_alone():
    p = char_lm.CharParams(**SMALL)
    torch.manual_seed(1)
    a, after = char_lm.build(p, 50), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    b, other = char_lm.build(p, 50), char_lm.build(p.model_copy(update={"seed": 1}), 50)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight) and not torch.equal(a.lm_head.weight, other.lm_head.weight)
    assert a.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_windows_are_runs_of_the_text():
    rows = char_lm.windows(torch.arange(100), 8, 500, torch.Generator().manual_seed(0))
    assert rows.shape == (500, 9) and (rows.diff(dim=1) == 1).all() and rows.min() == 0 and rows.max() == 99


def test_repeated_rows_repeat():
    rows = char_lm.repeated_rows(char_lm.CharParams(**SMALL), 50)
    assert rows.shape == (8, 16) and torch.equal(rows[:, :8], rows[:, 8:]) and not torch.equal(rows[0], rows[1])


# ---------------------------------------------------------------- the run


def test_the_first_loss_is_that_of_knowing_nothing_and_it_falls(straight):
    rows = RunFolder(straight).read().rows
    loss = rows[rows.metric == "loss"].set_index("step").value.astype(float)
    d_vocab = RunFolder(straight).info()["model"]["config"]["vocab_size"]
    assert loss[0] == pytest.approx(math.log(d_vocab), abs=0.1) and loss[24] < loss[0] - 0.02


def test_the_held_out_loss_is_that_of_the_kept_checkpoint(straight):
    """Compute it again from the file alone, by hand, on the same windows."""
    p, data = char_lm.CharParams(**SMALL), corpus.load("", SMALL["max_characters"])
    model = char_lm.build(p, len(data.symbols))
    model.load_state_dict(load_file(layout.file_of(straight, layout.CHECKPOINTS, 24)))
    held_out = torch.from_numpy(data.parts[1])
    rows = char_lm.windows(held_out, 16, char_lm.HELD_OUT_ROWS, torch.Generator().manual_seed(char_lm._HELD_OUT))
    with torch.no_grad():
        told = model(rows[:, :-1]).logits.double().softmax(-1).gather(2, rows[:, 1:, None])
    logged = RunFolder(straight).read().rows.query("step == 24 and metric == 'loss'").value.item()
    assert float(logged) == pytest.approx(-told.log().mean().item(), abs=1e-5)


def test_resumes_to_the_same_bits_from_between_two_checkpoints(tmp_path, straight):
    assert_resumes_alike("char_lm", SMALL, straight, tmp_path / "parted", at=13)


def test_stops_within_one_step(tmp_path):
    assert_stops_within_one_step("char_lm", SMALL, tmp_path / "stopped")


def test_says_what_it_logs_and_what_it_read(straight):
    assert_words_for_all("char_lm", straight)
    info = RunFolder(straight).info()
    assert info["corpus"]["sha256"] == corpus.load("", SMALL["max_characters"]).source["sha256"]
    assert "transformers" in info["versions"]


def test_it_does_not_go_on_with_another_text(tmp_path, book):
    given = {**SMALL, "text": str(book)}
    with pytest.raises(Cancelled):
        train("char_lm", given, tmp_path / "r", False, stop_at(13, 24))
    book.write_text("It was a bright cold day in April; \n" * 200, encoding="utf-8")
    with pytest.raises(BadInput, match="its text was another one"):
        train("char_lm", {}, tmp_path / "r", True, go_on)


def test_its_checkpoints_open_with_patterns_and_a_typed_prompt(straight):
    from backend import settings
    from backend.contract import parse_spec
    from backend.models.load import open_model

    model = open_model(parse_spec(f"run:{straight}", 24), settings.load({"PHASESCOPE_DEVICE": "cpu"}))
    tokens = Chars(model.card.tokenizer["symbols"]).encode("import")
    pattern = model.capture(torch.tensor([tokens]), ["pattern"])[("pattern", 0)]
    assert pattern.shape == (1, 2, 6, 6) and torch.allclose(pattern.sum(-1), torch.ones(1, 2, 6), atol=1e-5)
    assert model.card.n_ctx == 16 and "next_token" in model.card.capabilities


def test_presets_are_runs_of_the_recipe():
    declared = recipes.get("char_lm")
    runs = {p.name: [declared.params(**given) for given in p.runs] for p in declared.presets}
    assert len(runs["family"]) == 3 * 5 + 3 * 3 and len(runs["family small"]) == 9
    assert {(p.n_layers, p.d_model, p.n_heads) for p in runs["family"]} == set(char_lm.LADDER)
    assert {(p.steps, p.n_checkpoints, p.batch_size, p.n_ctx) for p in runs["family"]} == {(2000, 15, 16, 64)}
    assert all(len({p.seed for p in runs[n]}) == 5 - 2 * (n == "family small") for n in ("family", "family small"))
    estimates = [declared.seconds(p) for p in runs["family"]]
    assert estimates == sorted(estimates) and 20 < estimates[0] < 60 and estimates[-1] < 1500
