"""`hf-zipit inspect`."""

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json, Model, SpecFile
from hf_zipit.commands.terminal import show
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access


@takes_access
def inspect(model: Model, access: Access, spec: SpecFile = None, as_json: Json = False) -> None:
    """Show the feature spaces of a model and its legal cuts with their costs, or what a merge consists of.

    If the rest of the model reads several tensors after a cut, the spaces of all of them are shown. For a merge: its
    tasks, its cut, the cost of trunk and heads, and how many of its units are shared.
    """
    from hf_zipit.assembly.kinds import open_parents
    from hf_zipit.evaluation.inspection import inspection, inspection_text, merge_inspection, merge_text
    from hf_zipit.saving.load import is_merge, load_merged
    from hf_zipit.sources.load import load_or_build

    if is_merge(model, access):
        if spec is not None:
            raise OptionError(f"{model} is a merge and has its own spec: leave out --spec")
        found = merge_inspection(load_merged(model, access))
        show_json("inspect-merge", found) if as_json else show(merge_text(found))
        return
    source = load_or_build(model, access)
    parents = open_parents([source], spec)
    binding = parents.binding
    cuts = parents.cut_costs()
    show_json("inspect", inspection(binding, cuts)) if as_json else show(inspection_text(binding, cuts))
