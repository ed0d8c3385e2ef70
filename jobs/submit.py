"""Submit a job that a YAML file describes, and follow its output.

    python jobs/submit.py jobs/suite.yaml [--address http://127.0.0.1:8265] [--env NAME=VALUE] [--no-wait] [-- OPTIONS]

The file has the fields of Ray's `JobSubmissionClient.submit_job`. OPTIONS are added to its entrypoint. Needs on this
machine: Ray in the cluster's version, l2g_ray, and the cluster's token.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from l2g_ray.errors import UserError, nearest

FIELDS = (
    *("entrypoint", "submission_id", "runtime_env", "metadata"),
    *("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources"),
)


def read_job(path: Path, options: tuple[str, ...] = (), env: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the arguments of `submit_job` from a YAML file.

    `options` are added to the entrypoint, `env` (NAME=VALUE) to the environment. `working_dir` counts from the file's own
    folder. A time is added to `submission_id`, since Ray takes an id only once.

    Raises
    ------
    UserError : no YAML, an unknown field, no entrypoint, or a variable without a value.
    """
    try:
        job = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); name a file like jobs/suite.yaml"
        ) from None
    if not isinstance(job, dict) or not isinstance(job.get("entrypoint"), str):
        raise UserError(f"{path}: has no 'entrypoint'; give the command that the job runs")
    for field in job:
        if field not in FIELDS:
            raise UserError(f"{path}: unknown field '{field}'; {nearest(str(field), FIELDS)}")
    job["entrypoint"] = " ".join([job["entrypoint"].strip(), *map(shlex.quote, options)])
    if "submission_id" in job:
        job["submission_id"] += time.strftime("-%Y%m%d-%H%M%S", time.gmtime())
    runtime = job.setdefault("runtime_env", {})
    if "working_dir" in runtime and "://" not in runtime["working_dir"]:
        runtime["working_dir"] = str((path.parent / runtime["working_dir"]).resolve())
    for pair in env:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--env {pair}: has no value; write NAME=VALUE")
        runtime.setdefault("env_vars", {})[name] = value
    return job


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--address", help="The dashboard's; RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265, when not given.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="For the job. No secrets: the dashboard shows it.")
@click.option("--no-wait", is_flag=True, help="Submit only.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def submit(file: Path, address: str | None, env: tuple[str, ...], no_wait: bool, options: tuple[str, ...]) -> None:
    """Submit FILE with OPTIONS added to its entrypoint; the exit code is then the job's own."""
    from ray.job_submission import JobSubmissionClient

    job = read_job(file, options, env)
    client = _speak(lambda: JobSubmissionClient(address))
    number = _speak(lambda: client.submit_job(**job))
    click.echo(f"submitted {number}: {job['entrypoint']}")
    click.echo(f"follow: ray job logs -f {number}   stop: ray job stop {number}")
    if no_wait:
        return
    try:
        asyncio.run(_follow(client, number))
    except KeyboardInterrupt:
        click.echo(f"{number} still runs; to end it: ray job stop {number}", err=True)
        sys.exit(130)
    info = client.get_job_info(number)
    click.echo(f"{number}: {info.status.value.lower()}")
    sys.exit(info.driver_exit_code if info.driver_exit_code is not None else int(info.status.value != "SUCCEEDED"))


async def _follow(client: Any, number: str) -> None:
    async for lines in client.tail_job_logs(number):
        click.echo(lines, nl=False)


def _speak(call: Callable[[], Any]) -> Any:
    """Return what Ray answers; its refusals as one sentence each."""
    from ray.exceptions import AuthenticationError

    try:
        return call()
    except AuthenticationError:
        raise UserError(
            "the cluster refused the token, or got none; export RAY_AUTH_MODE=token, and have the cluster's token in "
            "~/.ray/auth_token (or in the file that RAY_AUTH_TOKEN_PATH names): `ray get-auth-token` on the head shows it"
        ) from None
    except ConnectionError as error:
        raise UserError(f"{str(error).rstrip('.')}; give the dashboard's address with --address") from None
    except RuntimeError as error:
        raise UserError(f"the cluster refused the job: {str(error).strip().splitlines()[0]}") from None


if __name__ == "__main__":
    try:
        submit()
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
