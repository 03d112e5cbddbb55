"""Koopman jumps in a Lightning trainer: one callback, here beside the same run without it.

pip install "koopcore[lightning]"
python examples/lightning_trainer.py

With several devices nothing changes: Trainer(strategy="ddp", devices=2, callbacks=[Koopman()]).
"""

from __future__ import annotations

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from koopcore.training.integrations.lightning import Koopman


class Sine(lightning.LightningModule):
    """A small network that learns a sine from all its points at once."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1)]
        self.net = nn.Sequential(*layers)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), lr=0.1)


def main(epochs: int = 1000) -> dict[str, float]:
    """Train both ways and print the losses side by side."""
    x = torch.linspace(-3, 3, 100)[:, None]
    data = DataLoader(TensorDataset(x, torch.sin(2 * x)), batch_size=len(x))
    losses = {}
    for name in ("plain", "koopcore"):
        callbacks = [Koopman()] if name == "koopcore" else []
        lightning.seed_everything(0, verbose=False)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Sine(), data)
        losses[name] = float(trainer.callback_metrics["loss"])
        print(f"{name:>9}: loss {losses[name]:.2e} after {epochs} epochs")
        for callback in callbacks:
            print(callback.koop.stats)
    return losses


if __name__ == "__main__":
    main()
