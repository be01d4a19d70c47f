"""`hf-zipit inspect`."""

from hf_zipit.access import Access
from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import Json, Model, SpecFile
from hf_zipit.commands.terminal import show, show_json


@takes_access
def inspect(model: Model, access: Access, spec: SpecFile = None, as_json: Json = False) -> None:
    """The feature spaces of a model, and where it may be cut with what each cut costs.

    A model around a backbone is cut like any other; where what follows reads several tensors, all are shown.
    """
    from hf_zipit.backbones import are_mixed, costs_around, share
    from hf_zipit.chain import cut_costs
    from hf_zipit.report import inspection, inspection_text
    from hf_zipit.sources import find_spec, load_or_build

    source = load_or_build(model, access)
    if are_mixed([source]):
        shared = share([source], spec)
        binding, cuts = shared.binding, costs_around(shared)
    else:
        binding = find_spec(source, spec)
        cuts = cut_costs(source.model, binding, source.input_size)
    if as_json:
        show_json(inspection(binding, cuts))
    else:
        show(inspection_text(binding, cuts))
