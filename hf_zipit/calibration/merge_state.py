"""What every calibration is given: a merged model and how it was made."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_zipit.data.batches import Passes
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan
from hf_zipit.transform.heads import Matches


@dataclass(frozen=True)
class MergeState:
    """A merge that is about to be calibrated.

    Attributes:
        model: the merged model, on the device of `passes`. Calibrations change it in place.
        parents: its sources, in task order. They are never changed.
        plan: where trunk and heads meet.
        matches: by space, which merged unit each parent's unit became.
        passes: the images of all tasks.
        seed: of everything that a calibration draws at random.
    """

    model: ZipItPreTrainedModel
    parents: Sequence[Source]
    plan: Plan
    matches: Matches
    passes: Passes
    seed: int = 0
