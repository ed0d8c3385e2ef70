"""Which page of MLflow's UI a person wants to see: the table of runs, not the start page."""

from __future__ import annotations

import http.client
import json
import os
import sys
from typing import Any

from l2g_ray.server.health import ask
from l2g_ray.tracking_store import KEY_TAG, runs_page, split_login

MOST_EXPERIMENTS = 1000


def find_runs_page(server: str) -> str:
    """The address, without a login, of the table with the newest run of this program on a server; the server's own
    where there is none, or where it does not answer."""
    shown = split_login(server)[0].rstrip("/")
    try:
        found = {e["experiment_id"]: e for e in _search(server, "experiments", {"max_results": MOST_EXPERIMENTS})}
        query = {
            "experiment_ids": list(found),
            "filter": f"tags.`{KEY_TAG}` LIKE '%'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        runs = _search(server, "runs", query) if found else []
        if not runs:
            return shown
        newest = runs[0]["info"]["experiment_id"]
        return runs_page(shown, newest, [tag["key"] for tag in found[newest].get("tags", [])])
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return shown


def has_browser() -> bool:
    """Whether a page can be opened for the person: a terminal on a machine with a screen."""
    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen


def _search(server: str, what: str, query: dict[str, object]) -> list[dict[str, Any]]:
    answer = ask(f"{server.rstrip('/')}/api/2.0/mlflow/{what}/search", json.dumps(query))
    return list(json.loads(answer).get(what, []))
