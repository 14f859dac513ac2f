"""How the house runs: one place, read from the environment once.

What changes an answer is a Params field, not a setting; dtype and device are the exception and part of every key.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from backend.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_RUNS = ROOT / "backend" / "runs" / "shipped"


class Settings(BaseModel):
    """Each field is read from PHASESCOPE_<NAME IN CAPITALS>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: Path = Field(ROOT / "cache", description="folder of the DuckDB file, tensors and the API token")
    runs: Path = Field(ROOT / "runs", description="folder of training runs; shipped runs are shown beside it")
    data: Path = Field(ROOT / "data", description="folder of models trained by others, for the page Published numbers")
    port: int = Field(8501, ge=1, le=65535, description="port of the dashboard on the loopback address")
    scheduler: str = Field("", description="tcp://host:port of a Dask scheduler to attach to; empty starts one here")
    workers: int = Field(
        0, ge=0, le=256,
        description="local worker processes; 0 means one per GPU, else one per core and one that training leaves free",
    )  # fmt: skip
    device: str = Field("auto", pattern="^(auto|cpu|cuda)$", description="where models run")
    dtype: str = Field(
        "float32", pattern="^(float32|float64|bfloat16|float16)$", description="precision of loaded weights"
    )
    model_memory_gb: float = Field(
        4.0, gt=0, description="memory for resident models per worker; the least recently used leaves"
    )
    worker_memory_gb: float = Field(
        0.0, ge=0, description="memory limit per worker; 0 means an equal share of 80 % of the machine"
    )
    cache_gb: float = Field(
        8.0, gt=0, description="size of kept results; the least recently used leave, pinned ones stay"
    )

    @property
    def runs_elsewhere(self) -> str:
        """The folder of runs where it is not the usual one, else ""."""
        return "" if self.runs == Settings.model_fields["runs"].default else str(self.runs)


def load(environ: dict[str, str] | None = None) -> Settings:
    """Read the settings. Raises BadInput that names the variable, its value and its range."""
    env = os.environ if environ is None else environ
    given = {n: env[f"PHASESCOPE_{n.upper()}"] for n in Settings.model_fields if env.get(f"PHASESCOPE_{n.upper()}")}
    try:
        return _absolute(Settings(**given))  # type: ignore[arg-type]
    except ValueError as error:
        first = error.errors()[0]  # type: ignore[attr-defined]
        name = f"PHASESCOPE_{str(first['loc'][0]).upper()}"
        field = str(first["loc"][0])
        todo = f"It is the {Settings.model_fields[field].description}; correct or unset it"
        raise BadInput(f"{name}={first['input']!r}", f"{first['msg']} ({_range(field)})", todo) from None


def _absolute(settings: Settings) -> Settings:
    """Folders are meant from where the command was given, wherever the process goes afterwards."""
    folders = {n: getattr(settings, n).expanduser().absolute() for n in ("cache", "runs", "data")}
    return settings.model_copy(update=folders)


def _range(field: str) -> str:
    shape = Settings.model_json_schema()["properties"][field]
    if "pattern" in shape:
        return f"one of {shape['pattern'].strip('^$()').replace('|', ', ')}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    return f"{shape['type']} " + " ".join(f"{w} {shape[k]}" for k, w in words.items() if k in shape)
