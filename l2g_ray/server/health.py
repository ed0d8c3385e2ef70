"""Whether a server answers, and which MLflow it runs."""

from __future__ import annotations

import base64
import http.client
import os
import urllib.error
import urllib.request

from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.tracking_store import split_login

TIMEOUT_S = 5.0


def check_health(url: str) -> tuple[bool, str]:
    """Ask `/health` and `/version`.

    A login is taken from the URL, else from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Returns whether the server is well,
    and one line about it. Raises UserError for what is no http(s) URL.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{redact(url)}: not the address of a server; give one such as http://127.0.0.1:5000")
    url = url.rstrip("/")
    shown = redact(url)
    try:
        ask(f"{url}/health")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"{shown} does not answer ({redact(str(getattr(error, 'reason', error)))})"
    try:
        return True, f"{shown} is well: MLflow {ask(url + '/version')[:200]}"
    except urllib.error.HTTPError as error:
        return True, f"{shown} is well: version not told (status {error.code})"
    except (OSError, http.client.HTTPException) as error:
        return False, f"{shown} stopped answering ({redact(str(error))})"


def ask(url: str, body: str | None = None) -> str:
    """What a server answers: to GET, or to POST where there is a `body`, which is JSON.

    The login is as in `check_health`. Raises OSError, ValueError or http.client.HTTPException where there is no answer.
    """
    url, user, password = split_login(url)
    if not user:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    request = urllib.request.Request(
        url, body.encode() if body else None, {"Content-Type": "application/json"} if body else {}
    )
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return answer.read().decode(errors="replace").strip()
