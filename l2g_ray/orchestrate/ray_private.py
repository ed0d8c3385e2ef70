"""What the package touches of Ray that Ray does not promise to keep. Nowhere else: `tests/test_private.py` checks it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from l2g_ray.redaction import SECRET


class _NoPaths(list[str]):
    def extend(self, paths: Iterable[str]) -> None:
        """Take none."""


def make_job_config() -> Any:
    """Return a Ray job config whose workers import installed packages, and a `working_dir` of the job's, only.

    Ray extends a list of the config by the driver's working directory and script folder, and every worker imports from them
    first: a file `torch.py` there would run. The list stays empty. An option of `ray.init` would replace this.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _NoPaths()
    return config


def find_dashboard(ray: Any) -> str:
    """Return the address of the cluster's dashboard as this machine sees it; empty where there is none.

    `ray.init` returns it too, but only to whoever called it first. A call of `ray.util.state` would replace this.
    """
    url = ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else ""


def place_sessions(folder: str) -> dict[str, str]:
    """Options of `ray.init` that put the sessions of a local Ray into a folder.

    RAY_TMPDIR names the folder above, which is too long where a short link stands for it. `temp_dir` without the underscore
    would replace this.
    """
    return {"_temp_dir": folder}


def keep_secrets_from_trials() -> None:
    """Take secrets out of the variables that Tune gives to its trials.

    Tune puts AWS credentials into their runtime_env, which Ray writes to its logs. Trials have them from the environment of
    their machine, as all other processes do. A setting of Tune for what it passes on would replace this.
    """
    from ray.tune.execution import class_cache

    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    passed_on.difference_update({variable for variable in passed_on if SECRET.search(variable)})
