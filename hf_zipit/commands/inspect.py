"""`hf-zipit inspect`."""

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import Json, Model, SpecFile
from hf_zipit.commands.terminal import show, show_json
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access


@takes_access
def inspect(model: Model, access: Access, spec: SpecFile = None, as_json: Json = False) -> None:
    """The feature spaces of a model, and where it may be cut with what each cut costs.

    A model around a backbone is cut like any other; where what follows reads several tensors, all are shown. Of a
    merge: its tasks, its cut, what trunk and heads cost, and what its units are made of.
    """
    from hf_zipit.backbones.share import are_mixed, costs_around, share
    from hf_zipit.costs import cut_costs
    from hf_zipit.evaluation.inspection import inspection, inspection_text, merge_inspection, merge_text
    from hf_zipit.find_spec import find_spec
    from hf_zipit.saving import load as loading
    from hf_zipit.sources.load import load_or_build

    if loading.is_merge(model, access):
        if spec is not None:
            raise OptionError(f"{model} is a merge and brings its own spec: --spec is for the models it was made of")
        found = merge_inspection(loading.load(model, access))
        show_json(found) if as_json else show(merge_text(found))
        return
    source = load_or_build(model, access)
    if are_mixed([source]):
        shared = share([source], spec)
        binding, cuts = shared.binding, costs_around(shared)
    else:
        binding = find_spec(source, spec)
        cuts = cut_costs(source.model, binding, source.input_size)
    show_json(inspection(binding, cuts)) if as_json else show(inspection_text(binding, cuts))
