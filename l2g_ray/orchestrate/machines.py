"""The devices that a plan can be made for, as data (machines.yaml): peaks, memory, and what is assumed of their use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from l2g_ray.errors import UserError, nearest


@dataclass(frozen=True)
class Machine:
    """One device. `peak_flops`: precision ('fp32', 'bf16') to dense FLOP/s; `memory_bytes` is None for a CPU, whose
    memory is the machine's and not known here. `source` says where the numbers are from."""

    name: str
    peak_flops: dict[str, float]
    memory_bytes: int | None
    source: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU; otherwise it is one core of a CPU."""
        return self.memory_bytes is not None

    def hours(self, flops: float, precision: str, utilisation: float) -> float:
        """Hours of this device for so many operations, at a share of its peak."""
        return flops / (self.peak_flops[precision] * utilisation) / 3600


@lru_cache(maxsize=1)
def read_machines() -> dict[str, Any]:
    """What machines.yaml holds: `utilisation`, `context_bytes`, `machines`, `language_models`."""
    text = (resources.files("l2g_ray") / "orchestrate" / "machines.yaml").read_text()
    return yaml.safe_load(text)


def find_machine(name: str) -> Machine:
    """A device by its name, in any case. Raises UserError for an unknown one; the nearest is named."""
    known = read_machines()["machines"]
    found = next((key for key in known if key.lower() == name.strip().lower()), None)
    if found is None:
        lowered = {key.lower(): key for key in known}
        hint = nearest(name.lower(), lowered)
        for low, key in lowered.items():
            hint = hint.replace(f"'{low}'", f"'{key}'")
        raise UserError(f"--gpu {name}: no such device in the table; {hint}")
    raw = known[found]
    peaks = {precision: float(raw[precision]) for precision in ("fp32", "bf16")}
    return Machine(found, peaks, raw["memory_bytes"], raw["source"])
