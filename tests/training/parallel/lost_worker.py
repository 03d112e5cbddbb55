"""Run by test_replicated.py: rank 1 is killed, or stays away, while rank 0 attempts a jump."""

import os
import signal
import sys
import time

import torch
from ranks import join, report
from torch import nn

import koopcore

RANK, SIZE = join(seconds=5.0)
torch.manual_seed(0)
x, y = torch.randn(16, 4), torch.randn(16, 2)
net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
koop = koopcore.attach(
    optimizer, net, loss=lambda: nn.functional.mse_loss(net(x), y), regime="smooth"
)
begun = time.monotonic()
try:
    for step in range(60):
        if RANK == 1 and step == 12:
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(8.0)
            os._exit(3)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
except RuntimeError as error:
    report(error=str(error), seconds=time.monotonic() - begun)
os._exit(0)
