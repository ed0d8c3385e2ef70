"""Whether the Hugging Face hub can be reached: asked once, briefly, before its library is let loose."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

HUB_URL = "https://huggingface.co"
CONNECT_TIMEOUT_S = 2.0


def hub_answers() -> bool:
    """Whether the hub (or the mirror of HF_ENDPOINT) takes connections; False at once where HF_HUB_OFFLINE is 1."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False
    endpoint = os.environ.get("HF_ENDPOINT") or HUB_URL
    # A plain connection attempt: the hub library itself retries for half a minute before it gives up.
    try:
        address = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), timeout=CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False
