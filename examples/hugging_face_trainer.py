"""Koopman jumps in a Hugging Face Trainer: one callback, here beside the same run without it.

pip install "koopcore[transformers]"
python examples/hugging_face_trainer.py
torchrun --nproc-per-node 2 examples/hugging_face_trainer.py

The model is a tiny BERT made from scratch, which learns whether a sentence begins with a word of
the upper half of its vocabulary.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from koopcore.training.integrations.hugging_face import KoopmanCallback


def classifier() -> BertForSequenceClassification:
    """A BERT of one layer, without dropout."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def sentences() -> list[dict[str, Any]]:
    """64 sentences of six words."""
    words = torch.randint(0, 32, (64, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": w, "labels": int(w[0] > 15)} for w in words]


def main(steps: int = 200) -> dict[str, float]:
    """Train both ways and print the losses side by side."""
    losses = {}
    for name in ("plain", "koopcore"):
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=64,  # all of them: a smooth trajectory
                learning_rate=0.05,
                optim="adagrad",
                lr_scheduler_type="constant",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
            )
            trainer = Trainer(model=classifier(), args=arguments, train_dataset=sentences())
            callback = KoopmanCallback(trainer)
            if name == "koopcore":
                trainer.add_callback(callback)
            trainer.train()
            losses[name] = trainer.evaluate(sentences())["eval_loss"]
        print(f"{name:>9}: loss {losses[name]:.2e} after {steps} steps")
        if callback.koop is not None:
            print(callback.koop.stats)
    return losses


if __name__ == "__main__":
    main()
