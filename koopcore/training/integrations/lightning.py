"""Koopman jumps in a Lightning trainer: one callback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from koopcore.training.attach import attach
from koopcore.training.attached import Attached
from koopcore.training.settings import Options
from koopcore.training.statistics import JumpRecord

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


class Koopman(Callback):
    """Attach koopcore to the optimizers of a run; :func:`koopcore.attach` says what that does.

        trainer = Trainer(callbacks=[Koopman()])

    Args:
        loss: "batch": what ``training_step`` returns at the first batch of the run (of each rank),
            which is held. Or a function of the LightningModule that returns the loss: needed with
            manual optimization, and better where the first batch says little. None: no loss, and
            jumps as far as the hindcast error allows. It runs under the trainer's precision, and
            what it logs is not logged.
        options: as of :func:`koopcore.attach`.

    koop: the :class:`koopcore.training.Attached`, from the first batch on; None before. After the
    run it is detached, its ``stats`` stay.

    Its state lies in Lightning's checkpoints; a resumed run goes on bit-identically if its data
    do. Each attempt is logged as ``koopcore/loss_before``, ``koopcore/loss_after``,
    ``koopcore/horizon`` and ``koopcore/accepted``. Several optimizers are one attachment: a step is
    over when each of them has stepped. The FSDP strategy (FSDP1) is refused: use
    ModelParallelStrategy.
    """

    def __init__(
        self,
        loss: Literal["batch"] | Callable[[LightningModule], Any] | None = "batch",
        **options: Unpack[Options],
    ) -> None:
        if loss is not None and loss != "batch" and not callable(loss):
            raise ValueError(
                f'loss is {loss!r}; give "batch", a function of the LightningModule, or None'
            )
        self._loss = loss
        self._options = options
        self._saved: dict[str, Any] | None = None
        self._ended: dict[str, Any] | None = None  # of a checkpoint that is saved after the run
        self.koop: Attached | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run's attachment."""
        self._detach()
        self._ended = self.koop = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Attach, once everything is where it trains."""
        if self.koop is not None:
            return
        if self._loss == "batch" and not pl_module.automatic_optimization:
            raise ValueError(
                'loss="batch" runs training_step, which steps by itself under manual optimization; '
                "give loss= a function of the module that returns the loss"
            )
        optimizers = list(trainer.optimizers)
        self.koop = attach(
            optimizers[0] if len(optimizers) == 1 else optimizers,
            trainer.strategy.model or pl_module,
            loss=None if self._loss is None else self._guard(trainer, pl_module, batch),
            on_jump=lambda record: _log(trainer, record),
            **self._options,
        )
        if self._saved is not None:
            self.koop.load_state_dict(self._saved)
            self._saved = None

    def _guard(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Callable[[], Any]:
        chosen = self._loss

        def loss() -> Any:
            with trainer.precision_plugin.train_step_context(), silent(pl_module):
                if callable(chosen):
                    return chosen(pl_module)
                output = pl_module.training_step(batch, 0)
            return output["loss"] if isinstance(output, Mapping) else output

        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the attachment's state, for Lightning's checkpoint."""
        if self.koop is not None and self.koop.is_attached:
            return self.koop.state_dict()
        return self._ended or self._saved or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a state until the attachment is there, which Lightning loads checkpoints before."""
        self._saved = state_dict or None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach; the statistics stay, and the state, for a checkpoint of the whole run."""
        if self.koop is not None and self.koop.is_attached:
            self._ended = self.koop.state_dict()
        self._detach()

    def _detach(self) -> None:
        if self.koop is not None:
            self.koop.detach()


@contextmanager
def silent(module: LightningModule) -> Iterator[None]:
    """Let the module log nothing in the block."""
    names = ("log", "log_dict")
    before = {name: vars(module)[name] for name in names if name in vars(module)}
    for name in names:
        object.__setattr__(module, name, _nothing)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)
            if name in before:
                object.__setattr__(module, name, before[name])


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _log(trainer: Trainer, record: JumpRecord) -> None:
    values = {
        "koopcore/accepted": float(record.accepted),
        "koopcore/horizon": record.horizon * record.stride,
    }
    for name in ("loss_before", "loss_after"):
        value = getattr(record, name)
        if value is not None:
            values[f"koopcore/{name}"] = value
    with torch.no_grad():
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
