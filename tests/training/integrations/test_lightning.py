"""The Lightning callback, with the real trainer on a small regression."""

from pathlib import Path

import pytest
import torch
from ranks import launch
from small_training import network, points

lightning = pytest.importorskip("lightning.pytorch")

from koopcore.training.integrations.lightning import Koopman  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Regression(lightning.LightningModule):
    def __init__(self, manual=False):
        super().__init__()
        self.net = network()
        self.automatic_optimization = not manual
        self.logged = []

    def step_loss(self, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch, index):
        loss = self.step_loss(batch)
        self.log("train", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def fit(callback, steps=60, model=None, path=None, **options):
    x, y = points()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    model = model or Regression()
    trainer = lightning.Trainer(
        max_epochs=steps,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data, ckpt_path=path)
    return trainer, model


def test_a_run_jumps_and_logs_nothing_of_the_guard():
    callback = Koopman()
    trainer, _ = fit(callback)
    assert callback.koop.stats.steps == 60
    assert callback.koop.stats.accepted > 0
    assert not callback.koop.is_attached
    assert set(trainer.callback_metrics) == {"train"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions_of_the_trainer_hold_for_the_loss(precision):
    callback = Koopman(regime="smooth")
    _, model = fit(callback, 40, precision=precision)
    assert callback.koop.stats.jumps > 0
    expected = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in model.parameters()} == {expected}


def test_accumulated_batches_are_one_step():
    callback = Koopman()
    x, y = points()
    halves = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(halves, batch_size=len(x) // 2)
    trainer = lightning.Trainer(
        max_epochs=20, accelerator="cpu", callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(Regression(), loader)
    assert callback.koop.stats.steps == 20


def test_manual_optimization_takes_a_function_of_the_module():
    x, y = points()
    callback = Koopman(loss=lambda module: module.step_loss((x, y)))
    fit(callback, model=Regression(manual=True))
    assert callback.koop.stats.accepted > 0
    with pytest.raises(ValueError, match="manual optimization"):
        fit(Koopman(), 1, model=Regression(manual=True))
    with pytest.raises(ValueError, match="loss is 'all'"):
        Koopman(loss="all")


def test_a_resumed_run_goes_on_bit_identically(tmp_path):
    whole, resumed = Koopman(), Koopman()
    _, expected = fit(whole, 60)

    class Save(lightning.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 34:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    saving = Koopman()
    x, y = points()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    lightning.Trainer(
        max_epochs=60, accelerator="cpu", callbacks=[saving, Save()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Regression(), data)  # fmt: skip
    _, model = fit(resumed, 60, path=tmp_path / "middle.ckpt")
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)
    keep = [(j.step, j.kind, j.horizon) for j in whole.koop.stats.history]
    assert [(j.step, j.kind, j.horizon) for j in resumed.koop.stats.history] == keep


def test_a_checkpoint_saved_after_the_run_holds_the_state(tmp_path):
    saved, resumed = Koopman(), Koopman()
    trainer, _ = fit(saved, 40)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fit(resumed, 60, path=tmp_path / "end.ckpt")
    assert resumed.koop.stats.steps == 60
    before = saved.koop.stats.history
    assert resumed.koop.stats.history[: len(before)] == before
    fit(saved, 10)  # another run begins anew
    assert saved.koop.stats.steps == 10


def test_two_processes_of_the_ddp_strategy_jump_alike():
    reports = launch(Path(__file__).parent / "lightning_worker.py", 2)
    for rank in reports:
        assert rank["exit"] == 0, rank["errors"][-2000:]
        assert rank["apart"] == 0.0
        assert rank["steps"] == 60
        assert rank["accepted"] > 0
        assert rank["losses"] == reports[0]["losses"]
