"""Hub names: two revisions in a local cache without a network, and a real download from a hub on the loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from backend.contract import parse_spec
from backend.errors import BadInput, Cancelled, NotFound
from backend.models.open import open_model
from backend.models.registry import locate
from tests.models_support import hf_folder, ids, opened, settings

ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def cache(root: Path, commits: dict[str, str], name: str = "someone/tiny") -> None:
    """Write a hub cache as the library lays it out: refs name commits, snapshots hold the files."""
    repo = root / "hub" / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    for seed, (ref, commit) in enumerate(commits.items()):
        (repo / "refs" / ref).write_text(commit)
        hf_folder(repo / "snapshots" / commit, "gpt2", seed=seed)


def test_two_revisions_in_the_local_cache(offline: Path) -> None:
    cache(offline, {"main": ONE, "step3": TWO})
    main, step3 = opened("hub:someone/tiny"), opened("hub:someone/tiny@step3")
    assert main.card.fingerprint != step3.card.fingerprint
    assert not torch.equal(main.logits(ids()), step3.logits(ids()))
    assert opened(f"hub:someone/tiny@{TWO}").card.fingerprint == step3.card.fingerprint
    assert main.card.source == f"hub someone/tiny, commit {ONE[:12]}"
    where = [locate(parse_spec(f"hub:someone/tiny{r}"), settings(offline)) for r in ("", "@step3", "@main")]
    assert where[0].signature == where[2].signature != where[1].signature and not where[0].remote


def test_a_branch_that_moves_changes_the_signature(offline: Path) -> None:
    cache(offline, {"main": ONE, "other": TWO})
    spec = parse_spec("hub:someone/tiny")
    before = locate(spec, settings(offline)).signature
    (offline / "hub" / "models--someone--tiny" / "refs" / "main").write_text(TWO)
    assert locate(spec, settings(offline)).signature != before


def test_without_a_network_the_sentence_says_what_to_do(offline: Path) -> None:
    cache(offline, {"main": ONE})
    for text in ("hub:someone/else", "hub:someone/tiny@step9"):
        assert locate(parse_spec(text), settings(offline)).remote
        with pytest.raises(NotFound, match=r"not in the local cache, and the hub cannot be reached\. Conn") as caught:
            opened(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="not a name of the hub"):
        opened("hub:a/b/c d")


def test_a_cache_without_weights_counts_as_absent(offline: Path) -> None:
    cache(offline, {"main": ONE})
    next((offline / "hub").rglob("model.safetensors")).unlink()
    assert locate(parse_spec("hub:someone/tiny"), settings(offline)).remote


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on the loopback that serves one repository with a pickle and some code beside the weights."""
    from huggingface_hub import constants

    folder = hf_folder(tmp_path / "served", "llama")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def answer(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            if "/api/models/someone/tiny/revision/main" in path:
                files = [{"rfilename": f.name} for f in sorted(folder.iterdir())]
                info = {"id": "someone/tiny", "sha": ONE, "siblings": files, "private": False, "tags": []}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            if "/api/models/someone/tiny/tree/" in path:
                tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40}
                        for f in sorted(folder.iterdir())]  # fmt: skip
                return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            file = folder / path.rsplit("/", 1)[-1]
            if "/someone/tiny/resolve/" in path and file.is_file():
                etag = hashlib.sha256(file.read_bytes()).hexdigest()
                return self.answer(200, file.read_bytes(), ETag=f'"{etag}"', X_Repo_Commit=ONE)
            code = "RevisionNotFound" if "someone/tiny" in path else "RepoNotFound"
            return self.answer(404, b"{}", X_Error_Code=code)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_ENDPOINT", url)
    yield asked
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_a_download_brings_no_code_and_tells_its_progress(hub_server: list[str], tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    model = open_model(parse_spec("hub:someone/tiny"), settings(tmp_path), lambda f, w: told.append((f, w)))
    assert torch.equal(model.logits(ids()), opened(f"dir:{tmp_path / 'served'}").logits(ids()))
    fetched = {p.rsplit("/", 1)[-1] for p in hub_server if "/resolve/" in p}
    assert {"config.json", "model.safetensors"} <= fetched and not fetched & {"pytorch_model.bin", "modeling.py"}
    downloads = [f for f, w in told if w.startswith("Downloading someone/tiny")]
    assert downloads and max(downloads) == pytest.approx(0.7) and told[-1] == (1.0, "Open")
    hub_server.clear()
    opened("hub:someone/tiny")
    assert hub_server == [], "a cached model needs no network"


def test_room_for_a_model_is_made_once_its_size_is_known(
    hub_server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the download nothing is known; counted as 0 it would be opened beside the first one."""
    from tests.test_models_resident import Watched

    size = opened(f"dir:{tmp_path / 'served'}").card.memory_bytes
    resident, told = Watched(int(size * 1.5), monkeypatch), []
    resident.get(parse_spec(f"dir:{tmp_path / 'served'}"), settings(tmp_path))
    spec = parse_spec("hub:someone/tiny")
    model = resident.get(spec, settings(tmp_path), lambda f, w: told.append((f, w)))
    assert resident.at_load == [[], []] and [c["spec"] for c in resident.contents()] == [str(spec)]
    assert [f for f, _ in told] == sorted(f for f, _ in told) and told[-1] == (1.0, "Open")
    assert max(f for f, w in told if w.startswith("Downloading")) == pytest.approx(0.7)
    assert resident.get(spec, settings(tmp_path)) is model and len(resident.at_load) == 2


def test_a_download_can_be_cancelled(hub_server: list[str], tmp_path: Path) -> None:
    def cancel(fraction: float, words: str) -> None:
        if words.startswith("Downloading"):
            raise Cancelled("Opening", "a person stopped it", "Open it again")

    with pytest.raises(Cancelled):
        open_model(parse_spec("hub:someone/tiny"), settings(tmp_path), cancel)


def test_an_interrupted_download_is_taken_up_again(hub_server: list[str], tmp_path: Path) -> None:
    opened("hub:someone/tiny")
    next((tmp_path / "hub").rglob("snapshots/*/model.safetensors")).unlink()
    assert locate(parse_spec("hub:someone/tiny"), settings(tmp_path)).remote
    opened("hub:someone/tiny")


def test_names_and_revisions_that_the_hub_does_not_know(hub_server: list[str], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no revision 'nine'"):
        opened("hub:someone/tiny@nine")
    with pytest.raises(NotFound, match="knows no such model"):
        opened("hub:no/body")
