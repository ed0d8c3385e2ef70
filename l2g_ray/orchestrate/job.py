"""What a unit of work is. Kept apart from `jobs`, which runs one, so that whoever only sends jobs imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l2g_ray.orchestrate.store import make_key


@dataclass(frozen=True)
class Job:
    """One trial of a stage. `args` go to the stage's function below; `inputs` name results of earlier stages.

    `parts` are what the result depends on; the key is their hash.
    """

    stage: str
    label: str
    args: dict[str, Any]
    inputs: dict[str, str]
    parts: dict[str, Any]

    @property
    def key(self) -> str:
        """Content key of the result."""
        return make_key(self.stage, self.parts | {"args": self.args})

    def spec(self, common: dict[str, Any]) -> dict[str, Any]:
        """The JSON form that travels to a worker."""
        return common | {"stage": self.stage, "key": self.key, "args": self.args, "inputs": self.inputs}
