"""`python -m app`: serve the dashboard on the loopback address, or say in one sentence why not."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from contextlib import closing

from backend import client, settings
from backend.errors import Busy, PhasescopeError

HELP = "Settings are environment variables:\n" + "\n".join(
    f"  PHASESCOPE_{name.upper():<22} {field.description or ''} (now {field.default})"
    for name, field in settings.Settings.model_fields.items()
)


def check_free(chosen: settings.Settings) -> None:
    """Raise Busy where a dashboard of this cache runs already or the port is taken."""
    running = client.running_dashboard(chosen)
    if running is not None:
        raise Busy(
            "Start the dashboard", f"one already runs on this cache at {running.url}", "Open it there, or end it first"
        )
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", chosen.port))
        except OSError:
            raise Busy(f"Port {chosen.port}", "another program holds it", "Set PHASESCOPE_PORT to a free one") from None


def main() -> int:
    """Serve until interrupted; returns the exit code. `--help` says what is set where."""
    told = argparse.ArgumentParser(prog="python -m app", description="Serve the dashboard on this machine.",
                                   epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    told.parse_args()
    try:
        chosen = settings.load()
        check_free(chosen)
        from backend.store.store import Store

        Store.open(chosen.cache, int(chosen.cache_gb * 1e9)).close()  # a held file is said here, not in a traceback
    except PhasescopeError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    import uvicorn

    os.environ |= {"PHASESCOPE_CACHE": str(chosen.cache), "PHASESCOPE_RUNS": str(chosen.runs)}  # absolute, before:
    os.chdir(settings.ROOT)  # streamlit reads .streamlit/config.toml from here
    print(f"Phasescope: http://localhost:{chosen.port}", flush=True)  # noqa: T201
    uvicorn.run("app.server:app", host="127.0.0.1", port=chosen.port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
