"""The Trainer callback and accelerate, with the real packages on tiny models made from scratch."""

from pathlib import Path

import pytest
import torch
from ranks import launch
from small_training import loss_of, network

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

import koopcore  # noqa: E402
from koopcore.training.integrations.hugging_face import KoopmanCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def classifier():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def sentences():
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 20, (16, 6), generator=generator)
    return [{"input_ids": w, "labels": int(w[0] > 9)} for w in words]


def trainer_of(folder, model, steps=40, size=16, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=size,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=25,
        logging_strategy="no",
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=sentences())
    callback = KoopmanCallback(trainer, **options)
    trainer.add_callback(callback)
    return trainer, callback


def jumps(callback):
    return [(j.step, j.kind, j.horizon) for j in callback.koop.stats.history]


def test_a_run_jumps_logs_and_resumes_bit_identically(tmp_path):
    trainer, whole = trainer_of(tmp_path, classifier(), 40)
    trainer.train()
    assert whole.koop.stats.steps == 40
    assert whole.koop.stats.jumps > 0
    assert any("koopcore_loss_before" in entry for entry in trainer.state.log_history)
    assert (tmp_path / "checkpoint-25" / "koopcore.pt").is_file()
    expected = [p.detach().clone() for p in trainer.model.parameters()]
    trainer, resumed = trainer_of(tmp_path, classifier(), 40)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-25"))
    assert jumps(resumed) == jumps(whole)
    for p, q in zip(trainer.model.parameters(), expected, strict=True):
        assert torch.equal(p, q)


def test_a_peft_models_adapters_are_recorded_and_resume(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        config = peft.LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
        return peft.get_peft_model(classifier(), config)

    trainer, whole = trainer_of(tmp_path, adapted(), 40, regime="smooth")
    names = []
    begin = whole.on_train_begin

    def look(*args, **kwargs):
        begin(*args, **kwargs)
        names.extend(whole.koop.recorded.names)

    whole.on_train_begin = look
    trainer.train()
    assert names
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert whole.koop.stats.jumps > 0
    expected = [p.detach().clone() for p in trainer.model.parameters()]
    trainer, resumed = trainer_of(tmp_path, adapted(), 40, regime="smooth")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-25"))
    assert jumps(resumed) == jumps(whole)
    for p, q in zip(trainer.model.parameters(), expected, strict=True):
        assert torch.equal(p, q)


def test_two_processes_jump_alike_and_resume(tmp_path):
    worker = Path(__file__).parent / "hugging_face_worker.py"
    reports = launch(worker, 2, str(tmp_path), paths=(worker.parent,))
    for rank in reports:
        assert rank["exit"] == 0, rank["errors"][-2000:]
        assert rank["apart"] == 0.0
        assert rank["accepted"] > 0
        assert rank["losses"] == reports[0]["losses"]
        assert rank["resumed"]


def test_misuse_is_said(tmp_path):
    with pytest.raises(TypeError, match=r"give the transformers\.Trainer"):
        KoopmanCallback("trainer")
    trainer, _ = trainer_of(tmp_path, classifier())
    with pytest.raises(ValueError, match="batches is 0"):
        KoopmanCallback(trainer, batches=0)


@pytest.mark.parametrize("before", [True, False])
def test_accelerate_before_and_after_prepare(before, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = loss_of(model)
    if before:
        koop = koopcore.attach(optimizer, model, loss=loss)
        model, optimizer = accelerator.prepare(model, optimizer)
    else:
        model, optimizer = accelerator.prepare(model, optimizer)
        koop = koopcore.attach(optimizer, model, loss=loss)
    accelerator.register_for_checkpointing(koop)

    def train(steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            value = loss()
            accelerator.backward(value)
            optimizer.step()
            losses.append(float(value.detach()))
        return losses

    train(33)
    accelerator.save_state(str(tmp_path))
    expected = train(20)
    assert koop.stats.accepted > 0
    accelerator.load_state(str(tmp_path))
    assert koop.stats.steps == 33
    assert train(20) == expected
