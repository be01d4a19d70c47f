"""`hf-zipit check-spec`."""

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import Json, Model, SpecFile
from hf_zipit.commands.terminal import show, show_json
from hf_zipit.sources.access import Access


@takes_access
def check_spec(model: Model, access: Access, spec: SpecFile = None, as_json: Json = False) -> None:
    """Check that a spec describes a model: coverage, function, probes, steps, and that a trace groups units alike."""
    from dataclasses import asdict

    from hf_zipit.find_spec import find_spec
    from hf_zipit.find_spec import review as run
    from hf_zipit.sources.load import load_or_build

    source = load_or_build(model, access)
    binding = find_spec(source, spec, checked=False)
    found = run(source.model, binding, source.input_size)
    if as_json:
        show_json({**asdict(found.report), "unseen": found.unseen, "not_traced": found.not_traced})
        return
    report = found.report
    compared = f"not compared with a trace: {found.not_traced}" if found.not_traced else "a trace groups units alike"
    if found.unseen:
        compared += f", but for what it holds fixed by {', '.join(found.unseen)}"
    show(
        f"{binding.spec.family} describes {source.name}: {report.spaces} spaces ({report.grouped} in groups), "
        f"{report.rows} rows, {report.cuts} cuts; permuting every space changes the logits by {report.difference:.1e}; "
        f"{compared}"
    )
