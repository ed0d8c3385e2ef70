"""The vocabulary of options: what an option means in one command, it means in all.

`--input` and `--output` are files, `--out` is a folder, `--target` is a class or output of a task. An option that was
renamed keeps its former names for one release.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.api.requests import DEFAULT_OUT, DEFAULT_PRESET, EXPERIMENT_VARIABLE
from l2g_ray.cli import complete
from l2g_ray.errors import UserError
from l2g_ray.places import is_uri
from l2g_ray.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

# Headings of `--help`, in this order; options without one come last.
GROUPS = ("Data", "Splits", "Training", "Cluster", "Output")
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}
_DEFAULT = re.compile(r"default: \((.*?)\)(?=[;\]])")
_STREAM = "-"
_PIPED = "l2g_ray.piped"
_QUIET = "l2g_ray.quiet"


class Option(click.Option):
    """An option with a group in `--help`, and the names that it had in the last release."""

    def __init__(self, *args: Any, former: Sequence[str] = (), group: str = "", **details: Any) -> None:
        super().__init__(*args, **details)
        self.former, self.group = tuple(former), group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return names and help; a default in words is shown without click's parentheses."""
        record = super().get_help_record(ctx)
        return record and (record[0], _DEFAULT.sub(r"default: \1", record[1]))


class Command(click.Command):
    """A command whose options are shown in groups and answer to their former names."""

    def __init__(self, *args: Any, **details: Any) -> None:
        details["context_settings"] = SETTINGS | (details.get("context_settings") or {})
        super().__init__(*args, **details)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace former names by those of now, with a note on stderr."""
        return super().parse_args(ctx, self._rename(args))

    def _rename(self, args: list[str]) -> list[str]:
        options = [param for param in self.params if isinstance(param, Option)]
        taken = {name for option in options for name in option.opts}
        now = {old: max(option.opts, key=len) for option in options for old in option.former if old not in taken}
        end = args.index("--") if "--" in args else len(args)
        renamed, noted = [], set()
        for arg in args[:end]:
            name, equals, value = arg.partition("=")
            if name in now and name not in noted:
                noted.add(name)
                click.echo(f"note: {name} is now {now[name]}; the old name works until the next release", err=True)
            renamed.append(now.get(name, name) + equals + value)
        return [*renamed, *args[end:]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of `list_sections`."""
        for name, records in self.list_sections(ctx).items():
            with formatter.section(name):
                formatter.write_dl(records)

    def list_sections(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Return names and help of the options by group, or in a single section where options are of few kinds."""
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in (*GROUPS, "")}
        single = {getattr(param, "group", "") for param in self.params} <= {"Output", ""}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                sections["" if single else getattr(param, "group", "")].append(record)
        return {name or "Options": records for name, records in sections.items() if records}


class Group(click.Group):
    """A group that suggests the nearest command, or command of a group in it, for a mistyped one."""

    command_class = Command

    def __init__(self, *args: Any, **details: Any) -> None:
        details["context_settings"] = SETTINGS | (details.get("context_settings") or {})
        super().__init__(*args, **details)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command. Raises click.UsageError with the nearest name for an unknown one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = self._find_nearest(ctx, name)
            hint = f". Did you mean '{near}'?" if near else "."
            raise click.UsageError(f"No such command '{name}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def _find_nearest(self, ctx: click.Context, name: str) -> str | None:
        """Return what is called most like `name`, such as 'suite' or 'data prepare'; of equals the first, a command of this group."""
        calls = [(one, one) for one in self.list_commands(ctx)]
        for one in self.list_commands(ctx):
            command = self.get_command(ctx, one)
            if isinstance(command, click.Group):
                calls += [(inner, f"{one} {inner}") for inner in command.list_commands(ctx)]
        near = difflib.get_close_matches(name, dict.fromkeys(last for last, _ in calls), n=1, cutoff=0.5)
        return next((call for last, call in calls if last in near), None)


Group.group_class = Group
command = partial(click.command, cls=Command)


def group(cls: type[Group] = Group) -> Decorator:
    """Return the decorator of a group of commands."""
    return click.group(cls=cls)


option = partial(click.option, cls=Option)


class InputFile(click.Path):
    """An existing file's path; `-` reads standard input into a file that is removed when the command ends."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a file."""
        if str(value) != _STREAM or ctx is None:
            return super().convert(value, param, ctx)
        content = sys.stdin.buffer
        start = content.read(4096)
        file = _make_folder(ctx) / f"stdin{_recognise(start)}"
        with file.open("wb") as copy:
            copy.write(start)
            shutil.copyfileobj(content, copy)
        return file


class LocalRun(click.Path):
    """The folder of a run, on this machine or on a shared path. Raises UserError for a URI."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a folder."""
        if is_uri(value):
            raise UserError(
                f"{redact(str(value))}: this command reads folders only; copy the run here first, or use `l2g-ray predict` or "
                "`l2g-ray embed --input`, which read object stores and MLflow models"
            )
        return super().convert(value, param, ctx)


class OutputFile(click.Path):
    """A path to write to; `-` is standard output, which gets a tab-separated table."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of a file."""
        if str(value) != _STREAM or ctx is None:
            return super().convert(value, param, ctx)
        file = _make_folder(ctx) / "stdout.tsv"
        ctx.meta[_PIPED] = True
        ctx.call_on_close(partial(_pour, file))
        return file


def _make_folder(ctx: click.Context) -> Path:
    return Path(ctx.with_resource(tempfile.TemporaryDirectory(prefix="l2g-ray-")))


def _pour(file: Path) -> None:
    if file.exists():  # not where the command failed
        sys.stdout.flush()
        with file.open("rb") as content:
            shutil.copyfileobj(content, sys.stdout.buffer)


def _recognise(start: bytes) -> str:
    """Return the suffix of a file that starts with these bytes."""
    if start.startswith(b"PAR1"):
        return ".parquet"
    if start.startswith((b"##", b"#CHROM")):
        return ".vcf"
    if start.lstrip().startswith(b">"):
        return ".fa"
    return ".tsv" if b"\t" in start.partition(b"\n")[0] else ".csv"


def echo_summary(text: str) -> None:
    """Print a command's last line: to stderr where standard output has its table."""
    click.echo(text, err=click.get_current_context().meta.get(_PIPED, False))


def is_quiet() -> bool:
    """Return whether the command has --quiet."""
    return bool(click.get_current_context().meta.get(_QUIET))


def table_console(as_json: bool = False, width: int = 110) -> Console:
    """Return the console for tables, which wraps only on a terminal; with `as_json` stderr, as stdout has the JSON."""
    from rich.console import Console

    stream = sys.stderr if as_json else sys.stdout
    return Console(width=None if stream.isatty() else width, highlight=False, stderr=as_json)


def run_console(as_json: bool = False, width: int = 110) -> Console:
    """Return the console for what a run prints on its way: as `table_console`, and silent with --quiet."""
    console = table_console(as_json, width)
    console.quiet = is_quiet()
    return console


def loading(console: Console) -> AbstractContextManager[Any]:
    """Show on a terminal that libraries are imported, which takes seconds; elsewhere nothing."""
    return console.status("loading libraries...") if console.is_terminal else nullcontext()


def _keep_quiet(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_QUIET] = value


Decorator = Callable[[Any], Any]


def with_options(options: Iterable[Decorator]) -> Decorator:
    """Return one decorator that adds several options, in this order."""

    def add(command: Any) -> Any:
        for one in reversed(list(options)):
            command = one(command)
        return command

    return add


def with_input(help: str, *, required: bool = False, former: Sequence[str] = ()) -> Decorator:
    """`--input`, a file or `-`."""
    text = f"{help} Use - for standard input."
    return option("--input", "-i", type=InputFile(), required=required, former=former, metavar="FILE", help=text)


def with_target(help: str, former: Sequence[str] = ("--output",)) -> Decorator:
    """`--target`, a class or output of the task."""
    return option("--target", metavar="NAME", former=former, help=help)


def with_out(help: str, *, group: str = "Output", **details: Any) -> Decorator:
    """`--out`, a folder."""
    return option("--out", type=click.Path(path_type=Path), metavar="FOLDER", group=group, help=help, **details)


with_runs = option(
    "--out", default=DEFAULT_OUT, metavar="FOLDER|s3://...", group="Output", help="Folder in which runs are stored."
)
with_json = option("--json", "as_json", is_flag=True, group="Output", help="Print JSON to standard output.")
with_quiet = option(
    "--quiet",
    "-q",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_keep_quiet,
    group="Output",
    help="Print no progress, only the result, warnings and errors.",
)
with_verbose = option("--verbose", "-v", is_flag=True, group="Output", help="Print Ray's own messages too.")
with_preset = option(
    "--preset",
    default=DEFAULT_PRESET,
    metavar="NAME|FILE",
    group="Training",
    shell_complete=complete.presets,
    help="Settings to start from: smoke, fast, paper, or a YAML file.",
)
with_set = option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    group="Training",
    shell_complete=complete.assignments,
    help="Change one setting, e.g. finetune.trials=8. Repeatable.",
)
with_language_model = option(
    "--language-model",
    metavar="MODEL",
    group="Training",
    help="Language model: a Hugging Face id, a local folder, or 'minilm'.",
)
with_seeds = option(
    "--seeds",
    type=click.IntRange(1),
    metavar="N",
    group="Training",
    show_default="the preset's",
    help="Number of seeds with which every arm is trained.",
)
with_data_dir = option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    group="Data",
    help="Folder that holds the benchmarks' files.",
)
with_keep_duplicates = option(
    "--keep-duplicates",
    is_flag=True,
    group="Data",
    help="Keep training rows that are also in the test split. The leaderboard carries a warning.",
)
with_experiment = option(
    "--experiment",
    envvar=EXPERIMENT_VARIABLE,
    show_envvar=True,
    default="l2g_ray",
    metavar="NAME",
    group="Output",
    help="MLflow experiment.",
)
with_cpus = option(
    "--cpus",
    type=click.IntRange(1),
    metavar="N",
    group="Cluster",
    show_default="all",
    help="Cores that a local cluster may use.",
)
