"""`hf-zipit check-spec`."""

from hf_zipit.commands.options import Json, Model, SpecFile
from hf_zipit.commands.terminal import show, show_json


def check_spec(model: Model, spec: SpecFile = None, as_json: Json = False) -> None:
    """Check that a spec describes a model: coverage, function preservation, probes and steps."""
    from dataclasses import asdict

    from hf_zipit.checks import check_spec as run
    from hf_zipit.sources import find_spec, load_or_build

    source = load_or_build(model)
    binding = find_spec(source, spec)
    report = run(source.model, binding, source.input_size)
    if as_json:
        show_json(asdict(report))
        return
    show(
        f"{binding.spec.family} describes {source.name}: {report.spaces} spaces ({report.grouped} in groups), "
        f"{report.rows} rows, {report.cuts} cuts; permuting every space changes the logits by {report.difference:.1e}"
    )
