"""The command line's way to a running dashboard: the facade's words over HTTP, so that both share one cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pandas as pd

from backend import export
from backend.errors import Broken, PhasescopeError, from_record
from backend.settings import Settings

TOKEN_FILE = "api.json"


def write_token(settings: Settings, url: str, token: str) -> Path:
    """Write {url, token, pid} where only the owner can read it; returns the file."""
    path = settings.cache / TOKEN_FILE
    settings.cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{TOKEN_FILE}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"url": url, "token": token, "pid": os.getpid()}, file)
    temporary.replace(path)
    return path


def running_dashboard(settings: Settings) -> Remote | None:
    """Return a client of the dashboard that owns this cache, or None where none answers."""
    try:
        known = json.loads((settings.cache / TOKEN_FILE).read_text())
        remote = Remote(known["url"], known["token"])
        ours = "cache" in remote.health()  # said only to those whose token is right: not another cache's dashboard
    except (OSError, ValueError, KeyError, TypeError, PhasescopeError):
        return None
    return remote if ours else None


class Remote:
    """The part of the facade that the API serves; raises the same errors."""

    def __init__(self, url: str, token: str):
        self.url = url
        self._http = httpx.Client(
            base_url=f"{url}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60, connect=2),
            trust_env=False,
            limits=httpx.Limits(keepalive_expiry=1.0),  # the server closes an idle connection after 5 s: never meet it
        )

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        asked = f"{method} {path}"
        try:
            answer = self._http.request(method, path, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found = f"the dashboard at {self.url} does not answer ({type(error).__name__})"
            raise Broken(asked, found, "Start it again, or end it and use the cache directly") from None
        if answer.is_success:
            return answer
        try:
            raise from_record(dict(answer.json()))
        except (ValueError, TypeError):
            found = f"the dashboard answered {answer.status_code}"
            raise Broken(asked, found, "Look at its log") from None

    def health(self) -> dict[str, Any]:
        """GET /health."""
        return self._call("GET", "/health").json()

    def doctor(self) -> dict[str, Any]:
        """GET /doctor."""
        return self._call("GET", "/doctor").json()

    def models(self) -> pd.DataFrame:
        """GET /models."""
        return pd.DataFrame(self._call("GET", "/models").json())

    def runs(self) -> list[dict[str, Any]]:
        """GET /runs."""
        return self._call("GET", "/runs").json()

    def run(self, name: str) -> dict[str, Any]:
        """GET /runs/NAME."""
        return self._call("GET", f"/runs/{quote(name, safe='')}").json()

    def transitions(self, run: str) -> list[dict[str, Any]]:
        """GET /runs/NAME/transitions."""
        return self._call("GET", f"/runs/{quote(run, safe='')}/transitions").json()

    def open(self, spec: str, step: int | None = None) -> dict[str, Any]:
        """POST /models."""
        return self._call("POST", "/models", json={"spec": spec, "step": step}).json()

    def submit(
        self, analysis: str, model: str, step: int | None = None, text: str = "", ids: Any = None, params: Any = None,
        about: Any = None, plan: bool = False,
    ) -> dict[str, Any]:
        """POST /submit."""
        body = {"analysis": analysis, "model": model, "step": step, "text": text, "ids": ids, "params": params or {},
                "about": about or {}, "plan": plan}  # fmt: skip
        return self._call("POST", "/submit", json=body).json()

    def train(
        self, recipe: str, params: Any, name: str = "", run_dir: str = "", resume: bool = False
    ) -> dict[str, Any]:
        """POST /runs."""
        body = {"recipe": recipe, "params": params, "name": name, "run_dir": run_dir, "resume": resume}
        return self._call("POST", "/runs", json=body).json()

    def plan_diagram(self, recipe: str, **given: Any) -> dict[str, Any]:
        """POST /diagrams with plan."""
        return self._call("POST", "/diagrams", json={"recipe": recipe, "plan": True, **given}).json()

    def start_diagram(self, recipe: str, **given: Any) -> dict[str, Any]:
        """POST /diagrams."""
        return self._call("POST", "/diagrams", json={"recipe": recipe, **given}).json()

    def diagram(self, name: str) -> dict[str, Any]:
        """GET /diagrams/NAME."""
        return self._call("GET", f"/diagrams/{quote(name, safe='')}").json()

    def continue_diagram(self, name: str) -> dict[str, Any]:
        """POST /diagrams/NAME/continue."""
        return self._call("POST", f"/diagrams/{quote(name, safe='')}/continue").json()

    def cancel_diagram(self, name: str) -> dict[str, Any]:
        """POST /diagrams/NAME/cancel."""
        return self._call("POST", f"/diagrams/{quote(name, safe='')}/cancel").json()

    def export_diagram(self, name: str, folder: str) -> list[str]:
        """POST /diagrams/NAME/export."""
        return self._call("POST", f"/diagrams/{quote(name, safe='')}/export", json={"folder": folder}).json()

    def diagram_phases(self, name: str, accuracy: float, delay: float) -> pd.DataFrame:
        """GET /diagrams/NAME/cells."""
        query = {"accuracy": accuracy, "delay": delay}
        return pd.DataFrame(self._call("GET", f"/diagrams/{quote(name, safe='')}/cells", params=query).json())

    def checkpoint_now(self, run: str) -> dict[str, Any]:
        """POST /runs/NAME/checkpoint."""
        return self._call("POST", f"/runs/{quote(run, safe='')}/checkpoint").json()

    def attach(self, path: str) -> dict[str, Any]:
        """POST /attached."""
        return self._call("POST", "/attached", json={"path": path}).json()

    def jobs(self) -> list[dict[str, Any]]:
        """GET /jobs."""
        return self._call("GET", "/jobs").json()

    def wait(self, job_id: str, timeout: float) -> dict[str, Any]:
        """GET /jobs/ID?wait=SECONDS."""
        return self._call("GET", f"/jobs/{job_id}", params={"wait": timeout}).json()

    def cancel(self, job_id: str, force: bool = False) -> dict[str, Any]:
        """POST /jobs/ID/cancel."""
        return self._call("POST", f"/jobs/{job_id}/cancel", json={"force": force}).json()

    def record(self, key: str) -> dict[str, Any]:
        """GET /results/KEY/record."""
        return self._call("GET", f"/results/{key}/record").json()

    def table(self, key: str) -> pd.DataFrame:
        """GET /results/KEY?format=arrow."""
        return export.from_arrow(self._call("GET", f"/results/{key}", params={"format": "arrow"}).content)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
