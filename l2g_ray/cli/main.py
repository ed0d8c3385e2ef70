"""`l2g-ray`: the command line. Heavy libraries are imported inside commands, so that --help is quick."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` imports from the working directory first: a file `click.py` there would run.
    del sys.path[0]

import os
import traceback

import click

from l2g_ray import __version__
from l2g_ray.cli.options import SETTINGS, Group
from l2g_ray.errors import ClusterLost, UserError
from l2g_ray.redaction import redact

EXIT_USER_ERROR = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


# Ray and MLflow send usage statistics only where the user has turned them on.
NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}


class _Lazy(Group):
    """Imports a command's module when the command is called, not before."""

    MODULES = {  # noqa: RUF012 - a constant table
        "suite": "l2g_ray.cli.suite:suite",
        "run": "l2g_ray.cli.suite:run_one",
        "status": "l2g_ray.cli.report:status",
        "plan": "l2g_ray.cli.plan:plan",
        "ablate": "l2g_ray.cli.studies:ablate",
        "baseline": "l2g_ray.cli.studies:baseline",
        "scale": "l2g_ray.cli.studies:scale",
        "predict": "l2g_ray.cli.predict:predict",
        "explain": "l2g_ray.cli.explain:explain",
        "variants": "l2g_ray.cli.variants:variants",
        "mutate": "l2g_ray.cli.variants:mutate",
        "embed": "l2g_ray.cli.explain:embed",
        "report": "l2g_ray.cli.report:report",
        "data": "l2g_ray.cli.data:data",
        "ui": "l2g_ray.cli.server:ui",
        "server": "l2g_ray.cli.server:server",
        "tasks": "l2g_ray.cli.config:tasks",
        "config": "l2g_ray.cli.config:config",
    }
    SUMMARIES = {  # noqa: RUF012
        "suite": "Run all tasks of a benchmark in parallel on a Ray cluster.",
        "run": "Run one task of the catalogue, or your own files.",
        "status": "Show the progress of a suite, from any shell.",
        "plan": "Estimate time, memory and disk of a run, or show what a finished one took.",
        "ablate": "Compare the same tasks with and without parts of the method.",
        "baseline": "Run simple models and other methods on the same splits.",
        "scale": "Measure how training scales over workers, and trials over slots.",
        "predict": "Predict sequences of a FASTA, CSV, TSV or Parquet file.",
        "explain": "Explain the model of a run: contributions of bases, motifs and their names.",
        "variants": "Score both alleles of variants.",
        "mutate": "Score every single-base change of a sequence.",
        "embed": "Embed new sequences, or compare stages.",
        "report": "Write the report of a finished run again, with later results.",
        "data": "Check, prepare, inspect and list data.",
        "ui": "Open the MLflow UI on a run's store.",
        "server": "Run the MLflow tracking server of a team.",
        "tasks": "List all benchmarks and their tasks.",
        "config": "Show and check settings.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, those of a first session first."""
        return list(self.MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in self.MODULES:
            return None
        import importlib

        module, _, attribute = self.MODULES[cmd_name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries above, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.SUMMARIES.items()))


@click.command(cls=_Lazy, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="l2g-ray", message="%(prog)s %(version)s", help="Print the version.")
def main() -> None:
    """Turn a text language model into a genomics predictor: search, align, fine-tune, evaluate.

    \b
    Start with:
      l2g-ray suite --bench demo
    """


def run() -> None:
    """Run the command line: a user's mistake is one sentence and exit code 2, an interrupt is 130."""
    for name, value in NO_STATISTICS.items():
        os.environ.setdefault(name, value)
    try:
        main.main(prog_name="l2g-ray", standalone_mode=False)
    except UserError as error:
        click.echo(f"error: {redact(str(error))}", err=True)
        sys.exit(EXIT_USER_ERROR)
    except ClusterLost as error:
        click.echo(f"error: {error}", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)  # Ray's own shutdown waits a minute for the lost cluster
    except click.ClickException as error:
        click.echo(redact(_describe(error)), err=True)
        sys.exit(EXIT_USER_ERROR)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; finished stages are kept, and the same command resumes", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if "No usable temporary directory" in str(error):  # Python's message; it has tried /tmp and others too
            place = os.environ.get("TMPDIR") or "/tmp"
            click.echo(
                f"error: {place}: no temporary files can be written; set TMPDIR to a folder with free space", err=True
            )
            sys.exit(EXIT_USER_ERROR)
        # Unexpected. A library's exception may quote an address with its login.
        click.echo(redact(traceback.format_exc()), err=True, nl=False)
        click.echo("failed with the error above; finished stages are kept, and the same command resumes", err=True)
        sys.exit(EXIT_FAILED)


def _describe(error: click.ClickException) -> str:
    message = error.format_message()
    if "\n" in message:  # called without a command: click's message is the help
        return message
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        message = f"No such option '{error.option_name}'. Did you mean '{error.possibilities[0]}'?"
    context = getattr(error, "ctx", None)
    if context is None:
        return f"error: {message.rstrip('.')}"
    help = f"see `{context.command_path} --help`"
    return f"error: {message} {help.capitalize()}" if message.endswith("?") else f"error: {message.rstrip('.')}; {help}"


if __name__ == "__main__":
    run()
