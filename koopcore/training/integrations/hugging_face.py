"""Koopman jumps in a Hugging Face Trainer: one callback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from koopcore.training.attach import attach
from koopcore.training.attached import Attached
from koopcore.training.settings import Options
from koopcore.training.statistics import JumpRecord

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

#: Beside a checkpoint: a file, or the folder of a sharded run.
NAME = "koopcore"


class KoopmanCallback(TrainerCallback):
    """Attach koopcore to a Trainer's optimizer; :func:`koopcore.attach` says what that does.

        trainer = Trainer(...)
        trainer.add_callback(KoopmanCallback(trainer))

    Args:
        trainer: the one that it is added to.
        loss: a function without arguments. None: the mean of ``trainer.compute_loss`` over
            ``batches``, under the trainer's autocast.
        batches: how many batches of the training set (of each process) are held for that, drawn by
            the trainer's seed without touching the loader's random numbers; or those batches
            themselves, mappings as the collator makes them: needed for a set without a length.
        options: as of :func:`koopcore.attach`.

    koop: the :class:`koopcore.training.Attached` while training, and afterwards, detached, for its
    ``stats``. Of a PEFT model the adapters are recorded: what trains.

    Its state is written beside each checkpoint (``koopcore.pt``, of sharded models a folder
    ``koopcore``) and read with ``resume_from_checkpoint``. Each attempt is logged by
    ``trainer.log``. DeepSpeed and FSDP1 are refused; FSDP2 (``fsdp_version: 2``) is recorded in
    shards.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        loss: Callable[[], Any] | None = None,
        batches: int | Sequence[Mapping[str, Any]] = 1,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"the first argument is {type(trainer).__name__}; give the transformers.Trainer "
                "that the callback is added to"
            )
        if isinstance(batches, int) and batches < 1:
            raise ValueError(f"batches is {batches}; give at least 1, or a list of batches")
        self._trainer = trainer
        self._loss = loss
        self._batches = batches
        self._options = options
        self._records: list[JumpRecord] = []
        self.koop: Attached | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach, and go on from the state beside the checkpoint that the run is resumed from."""
        model = kwargs["model"]
        self.koop = attach(
            kwargs["optimizer"],
            model,
            loss=self._loss or self._mean_loss(model, self._held(args, kwargs["train_dataloader"])),
            on_jump=self._records.append,
            **self._options,
        )
        if state.global_step:
            self._read(args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log the attempt that the step made, if it made one."""
        records, self._records[:] = list(self._records), []
        for record in records:
            values = {
                "koopcore_accepted": float(record.accepted),
                "koopcore_horizon": record.horizon * record.stride,
                "koopcore_loss_before": record.loss_before,
                "koopcore_loss_after": record.loss_after,
            }
            self._trainer.log({k: v for k, v in values.items() if v is not None})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the state beside the checkpoint."""
        if self.koop is None:
            return
        folder = self._folder(args, state)
        if self.koop.is_sharded:
            save({NAME: self.koop}, checkpoint_id=str(folder / NAME))
        elif state.is_world_process_zero:
            torch.save(self.koop.state_dict(), folder / f"{NAME}.pt")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach; the statistics stay."""
        if self.koop is not None:
            self.koop.detach()

    def _read(self, args: TrainingArguments, state: TrainerState) -> None:
        assert self.koop is not None
        folder = self._folder(args, state)
        if isinstance(args.resume_from_checkpoint, str):
            folder = Path(args.resume_from_checkpoint)
        if self.koop.is_sharded and (folder / NAME).is_dir():
            load({NAME: self.koop}, checkpoint_id=str(folder / NAME))
        elif (folder / f"{NAME}.pt").is_file():
            saved = torch.load(folder / f"{NAME}.pt", map_location="cpu", weights_only=True)
            self.koop.load_state_dict(saved)
        else:
            warnings.warn(
                f"koopcore: {folder} has no state of koopcore ({NAME}.pt), so its windows, "
                "averages and statistics begin anew",
                stacklevel=2,
            )

    @staticmethod
    def _folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"

    def _held(self, args: TrainingArguments, loader: Any) -> list[Mapping[str, Any]]:
        """Batches of this process, drawn without a word to the loader."""
        if not isinstance(self._batches, int):
            return list(self._batches)
        data = loader.dataset
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise TypeError(
                f"the training set is a {type(data).__name__} without a length; give batches= the "
                "batches that the loss is evaluated on, or loss="
            )
        size = args.per_device_train_batch_size
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.randperm(len(data), generator=generator).tolist()
        own = order[args.process_index :: args.world_size] or order
        return [
            loader.collate_fn([data[own[(k * size + i) % len(own)]] for i in range(size)])
            for k in range(self._batches)
        ]

    def _mean_loss(self, model: Any, batches: list[Mapping[str, Any]]) -> Callable[[], Any]:
        trainer = self._trainer
        prepared = [trainer._prepare_inputs(dict(batch)) for batch in batches]

        def loss() -> Any:
            with trainer.compute_loss_context_manager():
                losses: list[Any] = [trainer.compute_loss(model, dict(one)) for one in prepared]
            return torch.stack([each.float().mean() for each in losses]).mean()

        return loss
