"""Run by test_lightning.py in two processes: the ddp strategy, each with its part of the data."""

import lightning.pytorch as lightning
import torch
from ranks import apart, leave, report
from small_training import network, points

from koopcore.training.integrations.lightning import Koopman


class Regression(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = network()

    def training_step(self, batch, index):
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


x, y = points()
# Lightning gives each process every second row of a set that is not shuffled.
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x) // 2)
callback = Koopman()
trainer = lightning.Trainer(
    max_epochs=60,
    accelerator="cpu",
    strategy="ddp",
    devices=2,
    callbacks=[callback],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
model = Regression()
trainer.fit(model, data)
report(
    apart=apart(model),
    steps=callback.koop.stats.steps,
    accepted=callback.koop.stats.accepted,
    losses=[j.loss_before for j in callback.koop.stats.history],
)
leave()
