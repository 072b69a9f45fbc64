"""A linear classifier on features: multinomial logistic regression, its penalty by cross-validation, its calibration.

Full-batch L-BFGS on standardised float32 features; the scaling is folded back into the weights, so that the result is one linear
layer on the features as they come. Classes keep the frequencies of the training photographs. Called by `adapt`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

PENALTIES = (
    1.0,
    0.1,
    0.01,
    0.001,
)  # per photograph: half of it times the squared norm of the weights is added to the mean loss
STEPS = 60
BINS = 15  # of the expected calibration error (Guo et al. 2017)


@dataclass(frozen=True)
class Head:
    """A linear layer: weight (classes, features), bias (classes,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (photographs, classes)."""
        return features @ self.weight.T + self.bias


def fit_head(features: Tensor, classes: Tensor, num_classes: int, penalty: float, start: Head | None = None) -> Head:
    """Fits a head.

    Args:
        features: float32 (photographs, features).
        classes: int64 (photographs,).
        num_classes: of the head; a class without photographs gets a low bias.
        penalty: on the squared weights of standardised features.
        start: where to begin.
    """
    mean, scale = (
        features.mean(0),
        features.std(0).clamp_min(1e-6) if len(features) > 1 else torch.ones(features.shape[1]),
    )
    standard = (features - mean) / scale
    if start is None:
        weight, bias = torch.zeros(num_classes, features.shape[1]), torch.zeros(num_classes)
    else:
        weight, bias = start.weight * scale, start.bias + start.weight @ mean
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(standard @ weight.T + bias, classes) + 0.5 * penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    final = weight.detach() / scale
    return Head(final, bias.detach() - final @ mean)


def held_out(fold: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each fold, which photographs lie outside it and which inside; folds that are empty, or all, are passed over."""
    for number in sorted(set(fold.tolist())):
        inside = fold == number
        if not inside.all():
            yield ~inside, inside


def choose_penalty(
    features: Tensor, classes: Tensor, num_classes: int, fold: Tensor
) -> tuple[float, dict[float, float]]:
    """The penalty with the lowest held-out loss.

    Args:
        features, classes, num_classes: as in `fit_head`.
        fold: int64 (photographs,), of the cross-validation.

    Returns:
        the penalty, and the mean held-out negative log-likelihood of each.
    """
    sums = dict.fromkeys(PENALTIES, 0.0)
    count = 0
    for outside, inside in held_out(fold):
        head = None
        for penalty in PENALTIES:  # from strong to weak, each starting where the last one ended
            head = fit_head(features[outside], classes[outside], num_classes, penalty, head)
            sums[penalty] += float(F.cross_entropy(head(features[inside]), classes[inside], reduction="sum"))
        count += int(inside.sum())
    losses = {penalty: total / max(count, 1) for penalty, total in sums.items()}
    return (min(losses, key=lambda penalty: losses[penalty]) if count else 0.1), losses


@dataclass(frozen=True)
class Measured:
    """A classifier on photographs that it was not fitted to; percent and nats."""

    photographs: int
    top1: float
    top5: float
    nll: float
    ece: float
    temperature: float
    nll_calibrated: float
    ece_calibrated: float


def measure(logits: Tensor, classes: Tensor) -> Measured:
    """Accuracy and calibration; the temperature that logits are to be divided by minimises the negative log-likelihood.

    Args:
        logits: float32 (photographs, classes).
        classes: int64 (photographs,).

    Source: temperature scaling, Guo et al. 2017.
    """
    log_temperature = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log_temperature.exp(), classes)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    temperature = float(log_temperature.detach().clamp(-3, 3).exp())
    best = logits.topk(min(5, logits.shape[1])).indices == classes[:, None]

    def calibration(values: Tensor) -> float:
        error = multiclass_calibration_error(values.softmax(-1), classes, logits.shape[1], n_bins=BINS)
        return 100 * float(error)

    return Measured(
        photographs=len(classes),
        top1=100 * float(best[:, 0].float().mean()),
        top5=100 * float(best.any(1).float().mean()),
        nll=float(F.cross_entropy(logits, classes)),
        ece=calibration(logits),
        temperature=temperature,
        nll_calibrated=float(F.cross_entropy(logits / temperature, classes)),
        ece_calibrated=calibration(logits / temperature),
    )
