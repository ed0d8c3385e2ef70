"""What is never shown, logged or written: passwords in addresses, and the secrets of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

# `token` only at the end of a word: `target_tokens` and `tokenizer` are settings, `hf_token` is not.
SECRET = re.compile(r"(secret|passw(or)?d|api[_-]?key|access[_-]?key|credential|token(?![a-z]))", re.IGNORECASE)
HIDDEN = "***"
# Shorter values are more often words than secrets.
MIN_CHARS = 8


def redact(text: str) -> str:
    """Return the text with the logins of its URLs, and the values of the environment's secrets, replaced by `***`."""
    # Up to the last '@', and past '/', since SQLAlchemy takes both inside a password.
    text = re.sub(r"://([^/\s]+|[^/\s:]*:[^@\s]*)@", f"://{HIDDEN}@", text)
    text = re.sub(r"([?&]passw(?:or)?d=)[^&\s]+", rf"\1{HIDDEN}", text)
    text = re.sub(r"([?&](?:secret_key|access_key|session_token)=)[^&\s]+", rf"\1{HIDDEN}", text)
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    return text


def without_secrets(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without the keys that name a secret, and with every text redacted."""
    return {key: clean(value) for key, value in nested.items() if not SECRET.search(str(key))}


def clean(value: Any) -> Any:
    """Return a copy of a value that JSON can hold, every mapping in it `without_secrets`."""
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _environment_secrets() -> list[str]:
    found = set()
    for name in list(os.environ):  # other threads add and remove some meanwhile: MLflow's telemetry does
        value = os.environ.get(name, "")
        if SECRET.search(name):
            found.add(value)
        elif "://" in value and "@" in value:
            found |= {form for word in re.findall(r"://[^:/@\s]*:(.*)@", value) for form in (word, unquote(word))}
    return sorted((value for value in found if len(value) >= MIN_CHARS), key=len, reverse=True)
