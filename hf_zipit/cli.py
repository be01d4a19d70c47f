"""The command line: `hf-zipit merge | eval | inspect | check-spec | trace`. Results on stdout, the rest on stderr."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.errors import OptionError, ZipItError

app = typer.Typer(
    help="Merge models trained on different tasks into one model, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)

Models = Annotated[list[str], typer.Argument(help="Two or more Hub ids (user/name[@revision]) or local folders.")]
Data = Annotated[
    list[str],
    typer.Option("--data", help="Hub id, image folder or parquet, with or without :split. One for all, or one each."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="Use this spec file instead of the shipped one.")]
Device = Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda:0.")]


def _version(wanted: bool) -> None:
    if wanted:
        from hf_zipit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["HF_DEBUG"] = "1"
    _quieten()


@app.command()
def merge(
    models: Models,
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the merged model.")],
    method: Annotated[str, typer.Option(help="zip, permute or average.")] = "zip",
    cut: Annotated[str | None, typer.Option(help="Merge up to here, e.g. layer2; default: all layers.")] = None,
    alpha: Annotated[float, typer.Option(help="zip: penalty on merging many units into one, 0 to 1.")] = 0.1,
    beta: Annotated[float, typer.Option(help="zip: share of merges that may happen within a model, 0 to 1.")] = 0.8,
    compat: Annotated[bool, typer.Option("--compat", help="Follow the authors' code exactly.")] = False,
    num_images: Annotated[int | None, typer.Option(help="Images per data set; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 32,
    calibrate: Annotated[str, typer.Option(help="batchnorm or none.")] = "batchnorm",
    task: Annotated[list[str] | None, typer.Option("--task", help="Name of each task, in model order.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the images.")] = 0,
    device: Device = None,
    spec: SpecFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier merge in OUT.")] = False,
) -> None:
    """Merge models of one architecture into one model with a head per task."""
    from hf_zipit import saving
    from hf_zipit.batching import make_accelerator
    from hf_zipit.merging import merge as run
    from hf_zipit.sources import load

    saving.check_output(out, overwrite)
    _without_bars()
    sources = [load(model) for model in models]
    merged = run(
        sources,
        data,
        method=method,
        cut=cut,
        alpha=alpha,
        beta=beta,
        compat=compat,
        num_images=num_images,
        batch_size=batch_size,
        calibrate=calibrate,
        tasks=task,
        seed=seed,
        device=device,
        spec=spec,
    )
    if make_accelerator().is_main_process:
        folders = {i: source.folder for i, source in enumerate(sources) if source.folder and not source.origin["id"]}
        saving.save(merged, out, overwrite=overwrite, source_folders=folders)
        typer.echo(out)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A merged model: folder or Hub id.")],
    data: Data,
    parent: Annotated[
        list[str] | None, typer.Option("--parent", help="The source models, if they have moved; in task order.")
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="Images per data set; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a merged model, its parents and their ensemble, with FLOPs and parameters."""
    from hf_zipit.evaluation import evaluate as run
    from hf_zipit.report import result_table
    from hf_zipit.saving import load, load_parents

    _without_bars()
    merged = load(model)
    parents = load_parents(merged.config, model, parent)
    rows = run(merged, data, parents=parents, num_images=num_images, batch_size=batch_size, device=device)
    typer.echo(_json({"rows": [row.to_dict() for row in rows]}) if as_json else result_table(rows, merged.config.tasks))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or a timm architecture such as resnet50.")],
    spec: SpecFile = None,
    as_json: Json = False,
) -> None:
    """The feature spaces of a model, and where it may be cut with what each cut costs."""
    from hf_zipit.chain import cut_costs
    from hf_zipit.report import inspection, inspection_text

    source, binding = _bound(model, spec)
    cuts = cut_costs(source.model, binding, source.input_size)
    typer.echo(_json(inspection(binding, cuts)) if as_json else inspection_text(binding, cuts))


@app.command("check-spec")
def check_spec(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or a timm architecture such as resnet50.")],
    spec: SpecFile = None,
    as_json: Json = False,
) -> None:
    """Check that a spec describes a model: coverage, function preservation, probes and steps."""
    from dataclasses import asdict

    from hf_zipit.checks import check_spec as run

    source, binding = _bound(model, spec)
    report = run(source.model, binding, source.input_size)
    if as_json:
        typer.echo(_json(asdict(report)))
        return
    typer.echo(
        f"{binding.spec.family} describes {source.name}: {report.spaces} spaces ({report.grouped} in groups), "
        f"{report.rows} rows, {report.cuts} cuts; permuting every space changes the logits by {report.difference:.1e}"
    )


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or a timm architecture such as densenet121.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the spec to this file.")] = None,
) -> None:
    """Write a spec file for a model of any class, from one forward pass; it is checked before it is written."""
    from hf_zipit.sources import trace_source

    text = trace_source(_source(model))
    if out is None:
        typer.echo(text, nl=False)
    elif out.exists():
        raise OptionError(f"{out} exists already: choose another file")
    else:
        out.write_text(text, encoding="utf-8")
        typer.echo(out)


def _bound(model: str, spec: Path | None) -> tuple[Any, Any]:
    from hf_zipit.sources import find_spec

    source = _source(model)
    return source, find_spec(source, spec)


def _source(model: str) -> Any:
    from hf_zipit.libraries import untrained
    from hf_zipit.sources import load

    return load(model) if Path(model).exists() or "/" in model else untrained(model)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)


def _quieten() -> None:
    """Keep the libraries' chatter and their bars for steps of a second off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("timm").setLevel(logging.ERROR)


def _without_bars() -> None:
    """Loading and writing weights takes no time worth a bar; needs transformers, so only where it is loaded anyway."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def run() -> None:
    """Entry point: one readable message and exit code 1 for what the user can mend, 2 for wrong usage."""
    try:
        app()
    except ZipItError as error:
        if os.environ.get("HF_DEBUG"):
            raise
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)
