"""Checkpoints of earlier versions of timm: most architectures have a function that renames and reshapes their tensors.

timm applies it to every pretrained checkpoint, but publishes no way to ask for it: the function is an argument of the
call that loads the weights.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from timm.models import _builder
from torch import Tensor, nn

Filter = Callable[..., Mapping[str, Tensor]]
_lock = threading.Lock()


def build_and_filter(build: Callable[[], nn.Module]) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Any]]:
    """Build a model as timm does for pretrained weights, without any, and return the filter for its weights too.

    Args:
        build: calls `timm.create_model(..., pretrained=True)`.
    """
    with _intercepted() as found:
        model = build()
    own = found[0] if found else None

    def convert(state: dict[str, Tensor]) -> Any:
        if own is None:
            return state
        try:
            return own(state, model)
        except TypeError:  # timm still allows filters of one argument
            return own(state)

    return model, convert


@contextmanager
def _intercepted() -> Iterator[list[Filter]]:
    """Keep timm from loading weights in this thread, and note the filters that it would have used."""
    found: list[Filter] = []
    thread = threading.get_ident()
    with _lock:
        load = _builder.load_pretrained

        def note(model: nn.Module, *args: Any, **kwargs: Any) -> None:
            if threading.get_ident() != thread:
                load(model, *args, **kwargs)
            elif kwargs.get("filter_fn") is not None:
                found.append(kwargs["filter_fn"])

        _builder.load_pretrained = note
        try:
            yield found
        finally:
            _builder.load_pretrained = load
