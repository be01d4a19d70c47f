"""What the model cards of the parents state: accuracies, and the model that they were fine-tuned from."""

from collections.abc import Sequence

from hf_zipit.saving.license import card_data
from hf_zipit.sources.adapters import adapted_from
from hf_zipit.sources.source import Source


def stated_accuracies(sources: Sequence[Source]) -> list[float | None]:
    """For each task of the models, the accuracy in the `model-index` of its card, 0 to 1; `None` if none is stated.

    A model with several tasks, or a card with several accuracies, states none that could be told apart.

    Args:
        sources: the models, in order.
    """
    return [_stated(source) if len(source.tasks) == 1 else None for source in sources for _ in source.tasks]


def common_base(sources: Sequence[Source]) -> str | None:
    """The model that all cards, or adapters, name as their base; `None` if one names none, several or another.

    Args:
        sources: the models.
    """
    found = {str(card_data(source.folder).get("base_model") or adapted_from(source.folder)) for source in sources}
    base = found.pop()
    return None if found or base == "None" or base.startswith("[") else base


def _stated(source: Source) -> float | None:
    """The only accuracy in a card."""
    found = set()
    for entry in card_data(source.folder).get("model-index") or []:
        for result in entry.get("results") or [] if isinstance(entry, dict) else []:
            for metric in result.get("metrics") or [] if isinstance(result, dict) else []:
                value = metric.get("value") if isinstance(metric, dict) and metric.get("type") == "accuracy" else None
                if isinstance(value, int | float) and 0 < value <= 100:
                    found.add(value / 100 if value > 1 else float(value))
    return found.pop() if len(found) == 1 else None
