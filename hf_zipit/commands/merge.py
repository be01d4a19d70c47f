"""`hf-zipit merge`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.options import BatchSize, Data, Device, Models, NoCache, NumImages, SpecFile
from hf_zipit.commands.terminal import show, without_bars


def merge(
    models: Models,
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the merged model.")],
    method: Annotated[str, typer.Option(help="zip, permute or average.")] = "zip",
    cut: Annotated[str | None, typer.Option(help="Merge up to here, e.g. layer2; default: all layers.")] = None,
    alpha: Annotated[float, typer.Option(help="zip: penalty on merging many units into one, 0 to 1.")] = 0.1,
    beta: Annotated[float, typer.Option(help="zip: share of merges that may happen within a model, 0 to 1.")] = 0.8,
    compat: Annotated[bool, typer.Option("--compat", help="Follow the authors' code exactly.")] = False,
    num_images: NumImages = None,
    batch_size: BatchSize = 32,
    calibrate: Annotated[str, typer.Option(help="batchnorm or none.")] = "batchnorm",
    task: Annotated[list[str] | None, typer.Option("--task", help="Name of each task, in model order.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the images.")] = 0,
    device: Device = None,
    spec: SpecFile = None,
    no_cache: NoCache = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier merge in OUT.")] = False,
) -> None:
    """Merge models of one architecture into one model with a head per task."""
    from hf_zipit import saving
    from hf_zipit.batching import make_accelerator
    from hf_zipit.merging import merge as run
    from hf_zipit.sources import load

    saving.check_output(out, overwrite)
    without_bars()
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
        cache=not no_cache,
    )
    if make_accelerator().is_main_process:
        folders = {i: source.folder for i, source in enumerate(sources) if source.folder and not source.origin["id"]}
        saving.save(merged, out, overwrite=overwrite, source_folders=folders)
        show(out)
