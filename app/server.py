"""The ASGI entry: pages, HTTP API, and a lifespan that opens the store and starts the workers."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app import api, house, static_files  # noqa: E402
from backend import Backend, client, settings  # noqa: E402


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[dict[str, Any]]:
    """Publish static files, open the Backend, write the API token; undo all of it at the end."""
    chosen = settings.load()
    static_files.publish()
    backend = await asyncio.to_thread(Backend, chosen)
    house.settle(backend)
    api.TOKEN = secrets.token_urlsafe(32)
    token_file = client.write_token(chosen, f"http://127.0.0.1:{chosen.port}", api.TOKEN)
    try:
        yield {}
    finally:
        token_file.unlink(missing_ok=True)
        house.settle(None)
        await asyncio.to_thread(backend.close)


app = st.App(str(ROOT / "app" / "main.py"), lifespan=lifespan, routes=api.ROUTES)
