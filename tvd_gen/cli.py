"""The command line: load a config, call one room, print. The only room that prints.

Progress and messages go to stderr, results to stdout. Nothing heavy is imported before a command
runs, so that `tvd-gen --help` is quick.
"""

import functools
import json
import math
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TextIO, TypeVar

import typer

from tvd_gen.errors import ConfigError, DataError, Stopped, TvdGenError
from tvd_gen.process import is_first_process
from tvd_gen.strict_json import to_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from tvd_gen.config import RunConfig

P = ParamSpec("P")
T = TypeVar("T")

app = typer.Typer(
    name="tvd-gen",
    help="Train text generation with robust token objectives, and judge it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
configs_app = typer.Typer(help="The configs that ship with the package.", no_args_is_help=True)
app.add_typer(configs_app, name="configs")

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config", "-c", metavar="FILE", help="A config file, or the name of one that ships."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a field, by YAML's rules. Repeatable."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]

SHOWN = (
    *("run", "model", "step", "epoch", "loss", "nll", "accuracy", "mean_weight", "share_floored"),
    *("tokens_per_second", "eval_nll", "eval_perplexity", "eval_accuracy"),
)
"""What the table after training shows, where it is known; --json gives all."""

_debug = False


def main() -> None:
    """The entry point: `--debug` may stand anywhere."""
    given = sys.argv[1:]
    rest = [word for word in given if word != "--debug"]
    app(args=["--debug", *rest] if len(rest) < len(given) else rest, prog_name="tvd-gen")


# What the terminal shows -----------------------------------------------------------------------

# Control characters (escape sequences begin with one), and marks that turn the reading direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """Text that can do nothing to a terminal but be read."""
    return _CONTROL.sub("", str(text))


def _print_json(value: Any) -> None:
    _write(sys.stdout, to_json(value, indent=2))


def _write(stream: TextIO, text: str) -> None:
    # bytes: a terminal or pipe that is not UTF-8 must not stop a result
    data = (text + "\n").encode(stream.encoding or "utf-8", errors="replace")
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(text + "\n")
        return
    stream.flush()
    buffer.write(data)
    buffer.flush()


def number(value: Any) -> str:
    """A number as people read it: 1234, 37.9, 0.00123, 1.0e-07."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on stdout; the cells are plain text, never markup."""
    from rich.table import Table
    from rich.text import Text

    console = _console()
    if not console.is_terminal:
        console.width = 200  # nobody's window: do not cut
    table = Table(title=Text(clean(title)), title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(number(cell)) for cell in row))
    console.print(table)


class Screen(AbstractContextManager["Screen"]):
    """What a command says while it works, on stderr: lines and, on a terminal, progress bars.

    Under torchrun only the first process speaks.
    """

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        self._console = _console(stderr=True)
        self._console.quiet = not is_first_process()
        self._pause = seconds_between_lines
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> "Screen":
        if self._console.is_terminal and not self._console.quiet:
            self._bars = _progress_bars(self._console)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line, above the progress bars where there are any."""
        self._console.print(clean(text), soft_wrap=True)

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """How far a stage is; called often, shown at a human pace."""
        shown = "  ".join(f"{key} {number(value)}" for key, value in numbers.items())
        if self._bars:
            self._move_bar(clean(stage), done, total, clean(shown))
        elif self._is_due(stage, done, total):
            self.say(f"{stage} {done}/{total}  {shown}".rstrip())

    def _move_bar(self, stage: str, done: int, total: int, shown: str) -> None:
        assert self._bars is not None
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, numbers="")
        task = self._tasks[stage]
        if shown:
            self._bars.update(task, numbers=shown)
        self._bars.update(task, completed=done, total=total)

    def _is_due(self, stage: str, done: int, total: int) -> bool:
        now = time.monotonic()
        if done < total and now - self._last.get(stage, -math.inf) < self._pause:
            return False
        self._last[stage] = now
        return True


def _progress_bars(console: "Console") -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=console,
    )


# How a command ends ----------------------------------------------------------------------------


def reported(command: Callable[P, T]) -> Callable[P, T]:
    """Turns what a command raises into a message and an exit code; --debug shows the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except Stopped as error:  # all processes stop: one says it
            _fail(str(error) if is_first_process() else "", error.exit_code)
        except TvdGenError as error:
            _fail(str(error), error.exit_code)
        except BrokenPipeError:
            # the reader has gone: say nothing, and let the interpreter's last flush say nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            _fail(f"internal error: {text}; run again with --debug for the traceback", 1)

    return run


def _fail(message: str, code: int) -> NoReturn:
    if _debug:
        traceback.print_exc()
    if message:
        _write(sys.stderr, f"error: {clean(message)}")
    raise SystemExit(code)


# The commands ----------------------------------------------------------------------------------


def _print_version(wanted: bool) -> None:
    if wanted:
        from tvd_gen import __version__

        typer.echo(f"tvd-gen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    global _debug
    _debug = debug
    if not debug:
        warnings.simplefilter("ignore")  # libraries' warnings are for developers
    # Hugging Face libraries draw bars and warn on stderr, where our progress is.
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Threads that wait by spinning for long made a step five times slower on two cores that others
    # use too; threads that fall asleep at once make the head slower by half on idle ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _load(config: str, overrides: list[str] | None) -> "RunConfig":
    from tvd_gen.config import load_config

    return load_config(config, overrides or ())


@app.command()
@reported
def train(
    config: ConfigOption,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN", help="The run's folder; default: runs/NAME."),
    ] = None,
    overrides: SetOption = None,
    allow_change: Annotated[
        bool,
        typer.Option("--allow-change", help="Resume with other fields that change no weight."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model as a config says; the run's folder gets the model, the log and the config.

    A run that was stopped or killed goes on where it was, by the same command.
    """
    settings = _load(config, overrides)
    folder = output or Path("runs") / settings.name
    from tvd_gen import run

    with Screen() as screen:
        folder = run.train(
            settings,
            folder,
            say=screen.say,
            progress=screen.progress,
            allow_change=allow_change,
        )
    if not is_first_process():
        return
    summary = {"run": str(folder), "model": str(folder / "model"), **_last_numbers(folder)}
    if as_json:
        _print_json(summary)
        return
    _table("trained", ("what", "value"), [(key, summary[key]) for key in SHOWN if key in summary])
    _write(sys.stdout, clean(f"next: tvd-gen eval {folder}"))


def _last_numbers(folder: Path) -> dict[str, Any]:
    """The last value of every number in the run's log."""
    numbers: dict[str, Any] = {}
    log = folder / "log.jsonl"
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        numbers |= json.loads(line)
    return numbers


@app.command(name="eval")
@reported
def evaluate(
    run_folder: RunArgument, overrides: SetOption = None, as_json: JsonOption = False
) -> None:
    """Generate for a split and score it; writes predictions.jsonl and metrics.json."""
    from tvd_gen import run

    with Screen() as screen:
        numbers = run.evaluate(
            run_folder,
            overrides=_pairs(overrides),
            say=screen.say,
            progress=screen.progress,
        )
    if as_json:
        _print_json(numbers)
        return
    _print_metrics(run_folder, numbers)


def _pairs(overrides: list[str] | None) -> dict[str, Any]:
    from tvd_gen.config import parse_overrides

    return parse_overrides(overrides or ())


def _print_metrics(folder: Path, numbers: Mapping[str, float]) -> None:
    baselines = ("lead", "copy")
    present = [name for name in baselines if any(key.startswith(f"{name}_") for key in numbers)]
    own = [key for key in numbers if not key.startswith(tuple(f"{name}_" for name in present))]
    rows = [
        (key, numbers[key], *(numbers.get(f"{name}_{key}", "") for name in present)) for key in own
    ]
    _table(f"{folder}", ("metric", "model", *present), rows)
    written = [folder / name for name in ("metrics.json", "predictions.jsonl")]
    _write(
        sys.stdout, clean(f"written: {', '.join(str(file) for file in written if file.exists())}")
    )


@app.command()
@reported
def generate(
    run_folder: RunArgument,
    source: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="One text a line; default: stdin."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="One text a line; default: stdout."),
    ] = None,
    overrides: SetOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON lines, with the sources beside the texts.")
    ] = False,
) -> None:
    """Write a text for each line read; a line break within a text becomes a space."""
    texts = list(_lines(source))
    from tvd_gen import run

    with Screen() as screen:
        made = (
            run.generate(
                run_folder,
                texts,
                overrides=_pairs(overrides),
                say=screen.say,
                progress=screen.progress,
            )
            if texts
            else ()
        )
        rows = (_row(text, each, as_json) for text, each in zip(texts, made, strict=True))
        if output:
            _write_rows(output, rows)
        else:
            for row in rows:
                _write(sys.stdout, clean(row) if sys.stdout.isatty() else row)


def _row(source: str, text: str, as_json: bool) -> str:
    if as_json:
        return to_json({"source": source, "prediction": text})
    return " ".join(text.splitlines())


def _lines(file: Path | None) -> Iterator[str]:
    """The lines of a file or of stdin, without their ends; only a newline ends a line."""
    where = str(file) if file else "stdin"
    try:
        data = file.read_bytes() if file else sys.stdin.buffer.read()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    rows = data.removesuffix(b"\n").split(b"\n") if data else []
    for index, row in enumerate(rows, start=1):
        try:
            yield row.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            byte = f"0x{row[error.start]:02x}"
            raise DataError(f"{where}:{index}: the byte {byte} is not UTF-8") from error


def _write_rows(file: Path, rows: Iterable[str]) -> None:
    try:
        with file.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(f"{row}\n" for row in rows)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error


@app.command()
@reported
def plan(config: ConfigOption, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what a config would do: sizes, steps, memory, real examples. Writes nothing."""
    settings = _load(config, overrides)
    from tvd_gen import run

    with Screen() as screen:
        found = run.plan(settings, say=screen.say, progress=screen.progress).as_dict()
    if as_json:
        _print_json(found)
        return
    examples = found.pop("examples", [])
    _table(f"plan of {settings.name}", ("what", "value"), _flat(found))
    for index, example in enumerate(examples, start=1):
        _write(sys.stdout, f"\nexample {index}")
        for key, value in _flat(example if isinstance(example, Mapping) else {"text": example}):
            _write(sys.stdout, clean(f"  {key}: {value}"))


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf that says something."""
    for key, each in value.items():
        if each is None:
            continue
        if isinstance(each, Mapping):
            yield from _flat(each, f"{above}{key}.")
        else:
            yield f"{above}{key}", ", ".join(map(number, each)) if _is_list(each) else each


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


@configs_app.command("list")
@reported
def list_configs(as_json: JsonOption = False) -> None:
    """List the configs that ship, with what each is."""
    from tvd_gen.config import shipped_configs

    found = shipped_configs()
    if as_json:
        _print_json(found)
        return
    width = max(map(len, found), default=0)
    for name, what in found.items():
        _write(sys.stdout, f"{name:<{width}}  {what}")


@configs_app.command("show")
@reported
def show_config(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A config file or a shipped name.")],
) -> None:
    """Print a config's text, comments and all: a start for your own."""
    from tvd_gen.config import find_config

    _write(sys.stdout, find_config(name).read_text(encoding="utf-8").removesuffix("\n"))


@configs_app.command("schema")
@reported
def show_schema() -> None:
    """Print the JSON schema of a config, for editors and other programs."""
    from tvd_gen.config import json_schema

    _print_json(json_schema())
