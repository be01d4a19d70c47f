"""The help of the commands as plain text: examples, and options in groups, with one sentence each or with all."""

import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo

COMMANDS: dict[str, tuple[str, ...]] = {
    "Make a model": ("merge", "fold", "app"),
    "Look before and after": ("diagnose", "compare", "eval", "inspect"),
    "Share and serve": ("push", "export"),
    "Recipes, specs and stored statistics": ("recipe", "trace", "check-spec", "cache"),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "Models and data": (
        *("data", "pairs", "eval_data", "num_images", "eval_images", "label_column", "skip_bad_images"),
        *("parent", "base", "tasks", "task", "spec", "backbone", "folder", "allow"),
    ),
    "What to merge": (
        *("method", "methods", "preset", "cut", "cuts", "width", "widths", "flops_budget", "flops_budgets", "heads"),
        *("scale", "density", "alpha", "beta", "balance", "balance_data", "temperature", "masses", "sweeps", "compat"),
    ),
    "Quality": ("calibrate", "verdict", "require", "parent_accuracy", "class_embeddings", "average_heads", "latency"),
    "Output": (
        *("out", "overwrite", "library", "format", "license", "dry_run", "plot", "schema", "clear"),
        *("update_card", "as_json"),
    ),
    "Hub": (
        *("push_to", "private", "revision", "create_pr", "message"),
        *("token", "trust_remote_code", "allow_pickle"),
    ),
    "Run": (
        *("device", "batch_size", "seed", "cache", "host", "port", "open_browser"),
        *("verbose", "quiet", "debug", "help_all", "help"),
    ),
}
EXAMPLES: dict[str, tuple[str, str]] = {
    "merge": (
        "merge user/pets user/birds --data user/pets-data --data user/birds-data -o merged",
        "merge recipe.yml --cut layer3 --dry-run",
    ),
    "fold": (
        "fold user/pets --width 0.5 --data user/pets-data -o smaller",
        "fold user/pets --flops-budget 0.5 -o smaller",
    ),
    "push": ("push merged user/merged", "push merged user/merged --create-pr --message 'Merge pets and birds'"),
    "eval": (
        "eval merged --data user/pets-data:test --data user/birds-data:test",
        "eval user/merged --data user/pets-data:test --data user/birds-data:test --latency --json",
    ),
    "export": ("export merged --format onnx -o merged.onnx", "export merged --task pets -o pets"),
    "inspect": ("inspect resnet50", "inspect merged"),
    "check-spec": ("check-spec resnet50", "check-spec user/model --spec mine.yml"),
    "trace": ("trace user/model", "trace resnet50 -o resnet50.yml"),
    "recipe": ("recipe recipe.yml", "recipe --schema"),
    "compare": (
        "compare user/pets user/birds --data user/pets-data --data user/birds-data -o report",
        "compare user/pets user/birds --data images --methods auto,zip,random --cuts none,layer3 -o report",
    ),
    "diagnose": (
        "diagnose user/pets user/birds --data user/pets-data --data user/birds-data",
        "diagnose user/pets user/birds --data images --plot diagnosis.png",
    ),
    "cache": ("cache", "cache --clear"),
    "app": ("app --open", "app --folder models --allow images --port 8000"),
}
KINDS = {int: " N", float: " X", Path: " PATH", bool: ""}  # what stands for a value of this type; for others TEXT
WIDEST = 100  # columns
COLUMN = 26  # where the texts of the options begin
ALL = "hf_zipit.help_all"  # set in a context for the whole help
_SENTENCE_END = re.compile(r"(?<=\.) (?=[A-Z-])")
_CHOICE = re.compile(r"^- ([\w-]+)", re.MULTILINE)  # a paragraph about one of the values of an option


@dataclass(frozen=True)
class _Parameter:
    """An argument or option of a command.

    Attributes:
        head: how it is written, such as `-o, --out PATH`.
        text: what it does; paragraphs are divided by empty lines.
        argument: whether it is an argument.
    """

    head: str
    text: str
    argument: bool

    def shown(self, width: int, full: bool) -> str:
        """Its entry. The text begins on the same line if it can; without `full` it is one sentence."""
        lines = []
        for line in (self.text if full else _in_short(self.text)).split("\n"):
            indent = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(line, width - COLUMN, subsequent_indent=indent, break_on_hyphens=False)
        head = f"  {self.head}".ljust(COLUMN)
        if not head.endswith(" "):
            lines.insert(0, "")
        return "\n".join([(head + lines[0]).rstrip(), *(" " * COLUMN + line for line in lines[1:])])


def plain_help(command: Callable[..., None]) -> type[TyperCommand]:
    """The class of a command whose help is plain text.

    `--help` shows the first sentence about every option, and `--help-all` everything.

    Args:
        command: the function, whose signature has the arguments and options.
    """

    class PlainHelp(TyperCommand):
        def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
            formatter.write(help_text(command, ctx.command_path, bool(ctx.meta.get(ALL))))

    return PlainHelp


class PlainGroup(TyperGroup):
    """A group of commands whose help is plain text."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names of the commands, in groups, each with the first sentence of its help."""
        for title, names in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _first_sentence(self.commands[name].help or "")) for name in names])


def help_text(command: Callable[..., None], path: str, full: bool = False) -> str:
    """The help of a command.

    Args:
        command: the function, whose signature has the arguments and options.
        path: how it is called, such as `hf-zipit merge`.
        full: whether to show everything about each option, instead of one sentence.

    >>> from hf_zipit.commands.cache import cache
    >>> help_text(cache, "hf-zipit cache").split("\\n")[0]
    'Usage: hf-zipit cache [OPTIONS]'
    """
    width = min(WIDEST, shutil.get_terminal_size().columns)
    program, _, name = path.rpartition(" ")
    parameters = parameters_of(command)
    arguments = [one for one in parameters.values() if one.argument]
    about = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    sections = [
        " ".join([f"Usage: {path} [OPTIONS]", *(one.head for one in arguments)]),
        *(textwrap.fill(" ".join(part.split()), width) for part in about),
        "\n".join(["Examples:", *(f"  {program} {example}" for example in EXAMPLES[name])]),
    ]
    groups = {"Arguments": arguments}
    groups |= {title: [parameters[key] for key in keys if key in parameters] for title, keys in GROUPS.items()}
    for title, mine in groups.items():
        if mine:
            sections.append("\n".join([f"{title}:", *(one.shown(width, full) for one in mine)]))
    if not full:
        sections.append(
            f"Options with ... can be given several times. {path} --help-all shows everything about each option."
        )
    return "\n\n".join(sections) + "\n"


def parameters_of(command: Callable[..., None]) -> Mapping[str, _Parameter]:
    """The arguments and options of a command, in the order of its signature, with `--help` at the end."""
    found = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        kind, info = typing.get_args(parameter.annotation)[:2]
        kinds = [kind, *typing.get_args(kind)]  # of a union
        repeated = any(typing.get_origin(one) is list for one in kinds)
        kinds += [inner for one in kinds for inner in typing.get_args(one)]  # of a list
        if isinstance(info, ArgumentInfo):
            head = f"{name.upper()}{'...' if repeated else ''}"
            head = head if parameter.default is inspect.Parameter.empty else f"[{head}]"
        else:
            given = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
            names = sorted(given or [f"--{name.replace('_', '-')}"], key=len)
            plain = [one for one in kinds if one in KINDS]
            value = KINDS[plain[0]] if plain else " TEXT"
            value = f"{value}..." if repeated else "" if info.count else value
            head = ", ".join(names).replace("/", " / ") + value
        found[name] = _Parameter(head, info.help or "", isinstance(info, ArgumentInfo))
    return {**found, "help": _Parameter("--help", "Show this help and exit.", False)}


def _first_sentence(text: str) -> str:
    """The first sentence of a text."""
    return _SENTENCE_END.split(" ".join(text.split()))[0]


def _in_short(text: str) -> str:
    """The first sentence about an option, the names of its values, and its default."""
    first, *others = _SENTENCE_END.split(" ".join(text.split()))
    choices = [f"One of {', '.join(_CHOICE.findall(text))}."] if _CHOICE.search(text) else []
    return " ".join([first, *choices, *(one for one in others if one.startswith("Default: "))])


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    """Show the whole help and end, if it is wanted."""
    if wanted:
        ctx.meta[ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


HELP_ALL = Annotated[
    bool,
    typer.Option("--help-all", is_eager=True, callback=_show_all, help="Show everything about each option and exit."),
]
