"""The plain training loop behind the weights of `digits` and `fashion`, and their weights file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edgecompile.data.types import Arrays
from edgecompile.errors import InputError

Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    model: nn.Module,
    data: Arrays,
    epochs: int,
    seed: int,
    augment: Augment,
    batch_size: int,
    rate: float,
    device: str = "cpu",
    bfloat16: bool = False,
    adam: bool = False,
) -> None:
    """Train in place by SGD with Nesterov momentum, or AdamW, and a one-cycle rate; prints one line an epoch.

    `rate` is the highest learning rate; `bfloat16` runs the convolutions in it (weights stay float32).
    Seeded: on one machine, the same weights for the same seed.
    """
    assert data.targets is not None
    pictures, labels = data.inputs[0], data.targets
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(seed)
    steps = len(labels) // batch_size
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    if adam:
        optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.25)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    start = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        total = 0.0
        for step in range(steps):
            index = order[step * batch_size : (step + 1) * batch_size]
            x = augment(pictures[index], generator).to(device)
            with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=bfloat16):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(
            f"epoch {epoch + 1}/{epochs} loss {total / steps:.4f} {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def accuracy(model: nn.Module, data: Arrays) -> float:
    """Top-1 in percent, in evaluation mode."""
    model.eval()
    right = 0
    with torch.no_grad():
        for (x,), targets in data:
            assert targets is not None
            right += int((model(x).argmax(1) == targets).sum())
    return 100 * right / data.samples


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, at once or not at all, without batch counters."""
    from safetensors.torch import save_file

    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    staged = path.with_suffix(".partial")
    save_file(state, staged)
    os.replace(staged, path)
    print(f"wrote {path} ({path.stat().st_size} bytes)")


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Fill `model` from what `save_weights` wrote; raises `InputError` when it is missing or misfits."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: the weights are missing: train them with python -m edgecompile.models.{path.stem}")
    state = load_file(path)
    wanted = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    if wanted != set(state):
        odd = sorted(wanted ^ set(state))
        raise InputError(f"{path}: weights of another network (differs in {', '.join(odd[:4])}): train them anew")
    model.load_state_dict(state, strict=False)
    return model.eval()
