"""TSRAdam on an ordinary torch model: the moments of each matrix are 16 x 16 instead of 256 x 64.

python examples/optimizer.py
"""

import torch
from torch import nn

from tsr_swarm import TSRAdam

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))
teacher = nn.Linear(64, 64).requires_grad_(False)
optimizer = TSRAdam(model.parameters(), lr=3e-3, rank=16, refresh_every=50)
for step in range(501):
    inputs = torch.randn(128, 64)
    loss = nn.functional.mse_loss(model(inputs), teacher(inputs))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: loss {loss.item():.4f}")
