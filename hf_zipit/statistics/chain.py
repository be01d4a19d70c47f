"""A model as a chain of steps: where it may be cut, what each cut costs, and running a part of it."""

from collections.abc import Iterable

from torch import Tensor, nn

from hf_zipit.models.steps import run_steps
from hf_zipit.specs.spaces import Binding


class ModelChain:
    """Runs a model for what hooks see, no further than the last step that holds one of the modules `until`."""

    def __init__(self, model: nn.Module, binding: Binding, until: Iterable[str] = ()) -> None:
        until = list(until)
        last = [i for i, step in enumerate(binding.steps) if binding.under([step], until)]
        covered = all(any(binding.under([step], [name]) for step in binding.steps) for name in until)
        self.model = model
        self.steps = binding.calls(binding.steps[: max(last) + 1]) if last and covered else []

    def __call__(self, pixels: Tensor) -> None:
        """Run a batch `(B, 3, H, W)`."""
        if not self.steps:
            self.model(pixels)
        run_steps(self.model, self.steps, pixels, pixels.shape[-2:])
