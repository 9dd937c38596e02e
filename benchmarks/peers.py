"""What zoft is measured against, written as plainly as possible.

`MezoProcedure` does what MeZO's published trainer does (princeton-nlp/MeZO, `large_models/trainer.py`
and `utils.py`): the weights walk +eps, -2 eps, +eps in place, and the noise of every parameter is drawn
anew each time, in the parameter's type, from torch's generator. The forward pass is the whole model on
left-padded rows with an attention mask, the whole vocabulary at every position; `choice` puts every
option through it as a row of its own. Here the walk uses `add_`; the published lines also allocate a
new tensor for every parameter, which is slower.

The first-order peers and plain inference use zoft's own lean head, which spares them the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoft.data.examples import Choice
from zoft.engine.objectives.batch import Batch

MULTIPLE = 8  # MeZO's collators pad to a multiple of it


# -- MeZO's forward pass --------------------------------------------------------------------------


@dataclass(frozen=True)
class MezoRows:
    """R left-padded rows: input_ids and mask (R, T), tokens of each row's option, labels (B,).

    labels None: teacher-forced, one row per example, that of the right option.
    """

    input_ids: Tensor
    mask: Tensor
    option_lengths: tuple[int, ...]
    labels: Tensor | None


def mezo_rows(examples: Sequence[Choice], *, classification: bool) -> MezoRows:
    """The batch that MeZO's collators make, with or without its `train_as_classification`."""
    pairs = [
        (x.prompt, option)
        for x in examples
        for option in (x.options if classification else (x.options[x.label],))
    ]
    width = max(len(prompt) + len(option) for prompt, option in pairs)
    width += -width % MULTIPLE
    input_ids = torch.zeros(len(pairs), width, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for i, (prompt, option) in enumerate(pairs):
        row = torch.tensor([*prompt, *option])
        input_ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    labels = torch.tensor([x.label for x in examples]) if classification else None
    return MezoRows(input_ids, mask, tuple(len(option) for _, option in pairs), labels)


@torch.inference_mode()
def mezo_loss(model: nn.Module, rows: MezoRows) -> float:
    """`forward_wrap_with_option_len`: cross-entropy of the option's tokens, or over the options."""
    logits = model(input_ids=rows.input_ids, attention_mask=rows.mask, use_cache=False).logits
    shifted = logits[..., :-1, :].contiguous()
    targets = rows.input_ids[..., 1:].clone()
    for i, length in enumerate(rows.option_lengths):
        targets[i, :-length] = -100
    if rows.labels is None:
        loss = nn.functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets.view(-1))
        return loss.item()
    logs = nn.functional.log_softmax(shifted, dim=-1)
    option = targets != -100
    picked = logs.gather(-1, targets.where(option, 0)[..., None])[..., 0]
    scores = (picked * option).sum(-1) / option.sum(-1)
    return nn.functional.cross_entropy(scores.view(len(rows.labels), -1), rows.labels).item()


# -- zeroth order ---------------------------------------------------------------------------------


class MezoProcedure:
    """MeZO (arXiv 2305.17333, algorithm 1): theta <- theta - lr c z, z ~ N(0, 1)."""

    def __init__(self, model: nn.Module, perturbation: float = 1e-3) -> None:
        self.parameters = [p for p in model.parameters() if p.is_floating_point()]
        self.perturbation = perturbation

    def step(self, loss: Callable[[], float], seed: int, lr: float) -> float:
        """Both probes, the way back, the update. Returns the projected gradient c."""
        grad = self.probe(loss, seed)
        self.update(grad, seed, lr)
        return grad

    @torch.no_grad()
    def probe(self, loss: Callable[[], float], seed: int) -> float:
        """c = (L(theta + eps z) - L(theta - eps z)) / 2 eps; theta comes back up to rounding."""
        self._walk(seed, self.perturbation)
        plus = loss()
        self._walk(seed, -2 * self.perturbation)
        minus = loss()
        self._walk(seed, self.perturbation)
        return (plus - minus) / (2 * self.perturbation)

    @torch.no_grad()
    def update(self, grad: float, seed: int, lr: float) -> None:
        self._walk(seed, -lr * grad)

    def _walk(self, seed: int, scale: float) -> None:
        for parameter, z in noise(self.parameters, seed):
            parameter.add_(z, alpha=scale)


class ZoAdam(MezoProcedure):
    """Adam (Kingma and Ba) on MeZO's gradient estimate g = c z, with both moments stored."""

    def __init__(
        self,
        model: nn.Module,
        perturbation: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(model, perturbation)
        self.betas, self.eps, self.t = betas, eps, 0
        self.moments = [
            (torch.zeros_like(p, dtype=torch.float32), torch.zeros_like(p, dtype=torch.float32))
            for p in self.parameters
        ]

    @torch.no_grad()
    def update(self, grad: float, seed: int, lr: float) -> None:
        beta1, beta2 = self.betas
        self.t += 1
        rate, divisor = lr / (1 - beta1**self.t), 1 - beta2**self.t
        for (parameter, z), (m, v) in zip(noise(self.parameters, seed), self.moments, strict=True):
            g = z.float().mul_(grad)
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            parameter.addcdiv_(m, (v / divisor).sqrt_().add_(self.eps), value=-rate)


def noise(parameters: Sequence[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter with its z, drawn in the parameter's type, one after the other from one seed."""
    torch.manual_seed(seed)
    for p in parameters:
        yield p, torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)


# -- first order and inference --------------------------------------------------------------------


class AdamW:
    """torch.optim.AdamW on the parameters that ask for gradients; back-propagation, no dropout."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0) -> None:
        self.model = model
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    def step(self, batch: Batch) -> float:
        """One forward, one backward, one update; the loss before the update."""
        with torch.enable_grad():
            loss = lean_loss(self.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


@contextmanager
def gradients(model: nn.Module, *, only: str = "") -> Iterator[None]:
    """Inside, the parameters whose name contains `only` ask for gradients (peft's: `lora_`)."""
    chosen = [p for name, p in model.named_parameters() if only in name and p.is_floating_point()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
            parameter.grad = None


def lean_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The model as transformers runs it, then float32 logits of the scored positions only."""
    model = getattr(model, "get_base_model", lambda: model)()  # peft's wrapper
    inner: Any = model.base_model
    hidden = inner(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    scored = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
    head: Tensor = model.get_output_embeddings().weight  # type: ignore[operator]
    if batch.vocab is None:
        return (scored @ head.T).float()  # type: ignore[no-any-return]
    return scored.float() @ head[batch.vocab].float().T  # type: ignore[no-any-return]


def lean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of `choice` with options of one token, or of `lm`; with gradients if asked."""
    logits = lean_logits(model, batch)
    if batch.labels is not None and batch.vocab is None:
        raise ValueError("label words of several tokens: this peer scores words of one token")
    targets = batch.targets if batch.labels is None else batch.labels
    return nn.functional.cross_entropy(logits, targets)


@torch.no_grad()
def inference(model: nn.Module, batch: Batch) -> Tensor:
    """One plain pass."""
    return lean_logits(model, batch)
