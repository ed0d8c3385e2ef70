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
from l2g_ray.errors import ClusterLost, UserError
from l2g_ray.redaction import redact

EXIT_USER_ERROR = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


# Ray and MLflow send statistics of use to their makers only where a user has said so.
NOT_TOLD = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}


class _Lazy(click.Group):
    """Finds a command's module by its name when it is called, not before."""

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
        "suite": "All tasks of a benchmark, side by side on a Ray cluster.",
        "run": "One task of the catalogue, or files of your own.",
        "status": "Where a suite stands, from any shell.",
        "plan": "What a run will take, before it starts; what a finished one took.",
        "ablate": "What a part of the method adds: the same tasks with and without it.",
        "baseline": "Simple models and other methods on the same splits.",
        "scale": "Measure how training scales over workers, and trials over slots.",
        "predict": "Predictions of a finished run for a FASTA, CSV or Parquet file.",
        "explain": "What a model has learned: contributions that add up, motifs, their names.",
        "variants": "Scores of both alleles of variants, and their difference.",
        "mutate": "Every base of a sequence changed into every other, and what that does.",
        "embed": "Embeddings before and after each stage, and how well they separate.",
        "report": "The report of a finished run anew, with what was made of it since.",
        "data": "Prepare, inspect, check and list data.",
        "ui": "The MLflow UI on a run's store.",
        "server": "The MLflow tracking server of a team: start, health, backup.",
        "tasks": "The catalogue of benchmarks and tasks.",
        "config": "Show or check settings.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a person meets them."""
        return list(self.MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in self.MODULES:
            return None
        import importlib

        module, _, attribute = self.MODULES[cmd_name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Summaries from the table above, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.SUMMARIES.items()))


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="l2g-ray")
def main() -> None:
    """Turn a text language model into a genomics predictor: search, align, fine-tune, evaluate.

    \b
    Begin with:
      l2g-ray suite --bench demo
    """


def run() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, an interrupt is 130."""
    for name, value in NOT_TOLD.items():
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
        os._exit(EXIT_FAILED)  # Ray would take a minute to find nobody to say goodbye to
    except click.ClickException as error:
        click.echo(redact(_describe(error)), err=True)
        sys.exit(EXIT_USER_ERROR)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; finished stages are kept, the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if "No usable temporary directory" in str(error):  # Python's words; it has tried /tmp and others too
            place = os.environ.get("TMPDIR") or "/tmp"
            click.echo(f"error: {place}: no temporary files can be written; set TMPDIR to a folder with room", err=True)
            sys.exit(EXIT_USER_ERROR)
        # What nobody foresaw; an exception of a library may quote an address with its login.
        click.echo(redact(traceback.format_exc()), err=True, nl=False)
        click.echo("failed by the error above; what is finished is kept, the same command goes on from here", err=True)
        sys.exit(EXIT_FAILED)


def _describe(error: click.ClickException) -> str:
    message = error.format_message()
    if "\n" in message:  # called without a command: click's message is the help
        return message
    context = getattr(error, "ctx", None)
    hint = f"; see `{context.command_path} --help`" if context is not None else ""
    return f"error: {message.rstrip('.')}{hint}"


if __name__ == "__main__":
    run()
