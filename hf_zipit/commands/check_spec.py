"""`hf-zipit check-spec`."""

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json, Model, SpecFile
from hf_zipit.commands.terminal import show
from hf_zipit.sources.access import Access


@takes_access
def check_spec(model: Model, access: Access, spec: SpecFile = None, as_json: Json = False) -> None:
    """Check that a spec describes a model.

    The spec must cover all parameters. Permuting every space must leave the logits unchanged, and every probe and step
    must show the space that it names. A trace of the model must group the units in the same way.
    """
    from dataclasses import asdict

    from hf_zipit.find_spec import find_spec, review
    from hf_zipit.sources.load import load_or_build
    from hf_zipit.text import some

    source = load_or_build(model, access)
    binding = find_spec(source, spec, checked=False)
    found = review(source.model, binding, source.input_size)
    if as_json:
        more = {"unseen": found.unseen, "held": found.held, "not_traced": found.not_traced}
        show_json("check-spec", {**asdict(found.report), **more})
        return
    report = found.report
    compared = "a trace groups the units in the same way"
    if found.not_traced:
        compared = f"not compared with a trace: {found.not_traced}"
    if found.unseen:
        compared += f", except for units that it holds fixed because of {', '.join(found.unseen)}"
    if found.held:
        compared += f"; it says that it holds {some(found.held)} fixed, which are free in the model"
    show(
        f"{binding.spec.family} describes {source.name}: {report.spaces} spaces ({report.grouped} in groups), "
        f"{report.rows} rows, {report.cuts} cuts; permuting every space changes the logits by {report.difference:.1e}; "
        f"{compared}"
    )
