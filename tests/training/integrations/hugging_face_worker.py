"""Run by test_hugging_face.py in two processes: each with its part of the data, and resumed."""

import sys

import torch
from ranks import apart, leave, report
from test_hugging_face import classifier, jumps, trainer_of

folder = sys.argv[1]
trainer, whole = trainer_of(folder, classifier(), 40, size=8)
trainer.train()
expected = [p.detach().clone() for p in trainer.model.parameters()]
report(
    apart=apart(trainer.model),
    accepted=whole.koop.stats.accepted,
    losses=[j.loss_before for j in whole.koop.stats.history],
)
trainer, resumed = trainer_of(folder, classifier(), 40, size=8)
trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-25")
same = zip(trainer.model.parameters(), expected, strict=True)
report(resumed=all(torch.equal(p, q) for p, q in same) and jumps(resumed) == jumps(whole))
leave()
