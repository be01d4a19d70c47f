"""The training loop of all examples, for the parents; merging itself does not train."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Pixels(Dataset):
    """Images in memory, with random crops and flips that are applied by batch.

    Args:
        images: `(N, 3, H, W)`, uint8.
        labels: `(N,)`, class ids.
        mean: Channel means of the preprocessing, for pixels in [0, 1].
        std: Channel standard deviations of the preprocessing, for pixels in [0, 1].
        pad: Zero padding in pixels before a random crop to the original size; 0 for no crops.
        flip: Whether to flip half of the images horizontally.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        pad: int = 4,
        flip: bool = True,
    ) -> None:
        self.images, self.labels, self.pad, self.flip = images, labels, pad, flip
        self.mean, self.std = (255 * torch.tensor(value).view(3, 1, 1) for value in (mean, std))

    def to(self, device: torch.device | str) -> "Pixels":
        """Move the images to a device, where they are then cropped and flipped; returns itself."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        """A batch of normalised pixels `(B, 3, H, W)` and labels `(B,)`."""
        pixels = self.images[index]
        if self.pad:
            pixels = _cropped(pixels, self.pad)
        if self.flip:
            turned = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.5
            pixels = torch.where(turned, pixels.flip(3), pixels)
        return pixels.float().sub_(self.mean).div_(self.std), self.labels[index]

    def loader(self, batch_size: int) -> DataLoader[Any]:
        """Shuffled batches; an incomplete last batch is dropped."""
        full = len(self) >= batch_size
        return DataLoader(self, batch_size=batch_size, shuffle=True, drop_last=full, collate_fn=lambda batch: batch)


def _cropped(pixels: Tensor, pad: int) -> Tensor:
    """Each image shifted by at most `pad` pixels in each direction, and filled with zeros."""
    count, _, height, width = pixels.shape
    padded = nn.functional.pad(pixels, (pad,) * 4)
    place = {"device": pixels.device}
    rows = torch.randint(2 * pad + 1, (count, 1), **place) + torch.arange(height, **place)
    columns = torch.randint(2 * pad + 1, (count, 1), **place) + torch.arange(width, **place)
    images = torch.arange(count, **place)
    return padded[images[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def fit(
    model: nn.Module,
    batches: DataLoader[Any],
    *,
    epochs: int,
    lr: float,
    optimiser: str = "sgd",
    weight_decay: float = 5e-4,
    bf16: bool = False,
    name: str = "model",
) -> nn.Module:
    """Train a classifier in place with a one-cycle schedule and return it in eval mode.

    Args:
        model: A timm or transformers classifier.
        batches: `(pixels, labels)` batches of one epoch.
        epochs: Number of epochs.
        lr: Maximum learning rate.
        optimiser: `sgd` (momentum 0.9, Nesterov) or `adamw`.
        weight_decay: Weight decay of the optimiser.
        bf16: Run the model under bfloat16 autocast, about twice as fast on processors with support for it.
        name: Name of the model in progress messages.
    """
    accelerator = Accelerator()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimiser == "adamw":
        steps: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)
    else:
        steps = torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    trained, steps, batches = accelerator.prepare(model.train(), steps, batches)
    trained.to(memory_format=torch.channels_last)
    total = max(2, epochs * len(batches))
    rise = max(0.25, 2 / total)  # at least one step up and one down
    schedule = torch.optim.lr_scheduler.OneCycleLR(steps, lr, total_steps=total, pct_start=rise)
    for epoch in range(epochs):
        started, losses = time.perf_counter(), 0.0
        for pixels, labels in batches:
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16):
                logits = logits_of(trained(pixels.contiguous(memory_format=torch.channels_last)))
            loss = nn.functional.cross_entropy(logits.float(), labels)
            accelerator.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 5.0)
            steps.step()
            steps.zero_grad()
            schedule.step()
            losses += float(loss.detach())
        seconds = time.perf_counter() - started
        report = f"{name}: epoch {epoch + 1} of {epochs}, loss {losses / len(batches):.3f}, {seconds:.0f} s"
        accelerator.print(report, file=sys.stderr, flush=True)
    return accelerator.unwrap_model(trained).to("cpu", memory_format=torch.contiguous_format).eval()


def logits_of(output: Any) -> Tensor:
    """The logits in the output of a timm or transformers model."""
    return output if isinstance(output, Tensor) else output.logits


@torch.inference_mode()
def accuracy(model: nn.Module, images: Pixels, batch_size: int = 500) -> float:
    """Top-1 accuracy, in [0, 1]."""
    hits = 0
    for index in torch.arange(len(images)).split(batch_size):
        pixels, labels = images.__getitems__(index.tolist())
        hits += int((logits_of(model(pixels)).argmax(-1) == labels).sum())
    return hits / len(images)
