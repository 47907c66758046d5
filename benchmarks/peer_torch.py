"""The networks trained by PyTorch, eager or compiled, in channels_last, float32 or bfloat16.

Runs in an environment of its own: needs only torch and NumPy.
"""

import contextlib
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from workload import (
    CLASSES,
    DROPOUT,
    EVAL_BATCH,
    LEARNING_RATE,
    NETWORKS,
    calls_per_s,
    create_batch,
    run_worker,
)


def create_model(name: str) -> nn.Module:
    """Builds a network of NCHW images `[batch, 1, 48, 48]` float32, He-normal weights."""
    layers: list[nn.Module] = []
    side, features, flat = 48, 1, False
    for kind, *sizes in [*NETWORKS[name], ("dense", CLASSES)]:
        size, *rest = sizes or [0]
        if kind == "conv":
            layers += [nn.Conv2d(features, size, rest[0]), nn.ReLU(inplace=True)]
            side, features = side - rest[0] + 1, size
        elif kind == "norm":
            layers += [*conv_norm(features, size, 3, 1), nn.ReLU(inplace=True)]
            features = size
        elif kind == "block":
            layers.append(Block(features, size, rest[0]))
            features = size
        elif kind == "mean":
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            flat = True
        elif kind == "drop":
            layers.append(nn.Dropout(DROPOUT))
        elif kind in ("max", "avg"):
            layers.append({"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[kind](size, rest[0]))
            side = (side - size) // rest[0] + 1
        else:
            if not flat:
                layers.append(nn.Flatten())
                features, flat = features * side * side, True
            layers += [nn.Linear(features, size), nn.ReLU(inplace=True), nn.Dropout(DROPOUT)]
            features = size
    model = nn.Sequential(*layers[:-2])  # the last layer gives logits
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model.to(memory_format=torch.channels_last)


def conv_norm(inputs: int, outputs: int, side: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """He et al. 2016, figure 5 left."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        """Maps `inputs` channels to `outputs`."""
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(inputs, outputs, 3, stride),
            nn.ReLU(inplace=True),
            *conv_norm(outputs, outputs, 3, 1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*([] if same else conv_norm(inputs, outputs, 1, stride)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `[batch, inputs, height, width]`."""
        return torch.relu(self.body(x) + self.shortcut(x))


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def to_input(images: np.ndarray) -> torch.Tensor:
    """Maps `[batch, 48, 48, 1]` uint8 to `[batch, 1, 48, 48]` float32 in [0, 1]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return x.contiguous(memory_format=torch.channels_last)


def measure(args):
    torch.manual_seed(0)
    start = time.perf_counter()
    model = create_model(args.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    images, labels = create_batch(args.batch)

    def precision():
        if args.bfloat16:
            return torch.autocast("cpu", torch.bfloat16)
        return contextlib.nullcontext()

    def loss_of(x, y):
        with precision():
            return nn.functional.cross_entropy(model(x), y)

    def probabilities(x):
        with precision():
            return model(x).float().softmax(-1)

    if args.compile:
        loss_of, probabilities = torch.compile(loss_of), torch.compile(probabilities)

    def train():
        optimizer.zero_grad(set_to_none=True)
        loss_of(to_input(images), torch.from_numpy(labels).long()).backward()
        optimizer.step()

    train()
    yield {"start_s": time.perf_counter() - start}
    yield {"train_images_per_s": args.batch * calls_per_s(train, lambda: None, args.seconds)}
    if args.evaluate:
        model.eval()
        images, _ = create_batch(EVAL_BATCH)

        @torch.inference_mode()
        def evaluate():
            return probabilities(to_input(images)).numpy()

        rate = EVAL_BATCH * calls_per_s(evaluate, lambda: None, args.seconds)
        yield {"eval_images_per_s": rate}
    yield {"parameters": count_parameters(model), "versions": {"torch": torch.__version__}}


if __name__ == "__main__":
    run_worker(measure, "--compile", "--bfloat16")
