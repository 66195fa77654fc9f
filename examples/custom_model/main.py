"""Train a model and data of your own together: four peers, each with its own part of the data.

    python examples/custom_model/main.py

``tsr-swarm join`` trains the decoder that the run file describes; any other model is trained through the library, here
with all peers in one process. What they exchange is packed, checked and averaged by the code of real peers.
"""

import torch
from torch import Tensor, nn

from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.manifest import make_manifest
from tsr_swarm.simulate.swarms import OwnSwarm, Task

PEERS, ROUNDS = 4, 12


class Model(nn.Module):
    """Any module will do that has a ``loss`` of a batch. Matrices are exchanged at low rank, vectors whole."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(32, 128)
        self.out = nn.Linear(128, 32)

    def loss(self, batch: Tensor) -> Tensor:
        inputs, targets = batch.chunk(2, dim=1)
        return nn.functional.mse_loss(self.out(torch.tanh(self.hidden(inputs))), targets)


class Data:
    """One peer's own data. A batch is a function of the step, so that a peer can resume anywhere."""

    def __init__(self, number: int, rows: int, batch_size: int = 32) -> None:
        truth = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)) / 32**0.5  # what there is to learn
        inputs = torch.randn(rows, 32, generator=torch.Generator().manual_seed(number))
        self.batch_size = batch_size
        self.rows = torch.cat([inputs, torch.tanh(inputs @ truth)], dim=1)

    def batch(self, step: int, micro: int = 0) -> Tensor:
        first = (step + micro) * self.batch_size
        return self.rows[torch.arange(first, first + self.batch_size) % len(self.rows)]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = run_config_from_mapping(
        {
            "data": {"parts": PEERS},
            "optimizer": {"rank": 16, "lr": 0.02, "warmup_steps": 10, "decay_steps": 230},
            "periods": {"k_x": 20},  # local steps between two exchanges
        }
    )
    model = Model()
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    manifest = make_manifest("custom", config, {name: tuple(weight.shape) for name, weight in weights.items()})
    task = Task(manifest=manifest, weights=weights, make_model=Model)
    swarm = OwnSwarm(config, [Data(number, rows=2000) for number in range(1, PEERS + 1)], task=task)
    heldout = Data(PEERS + 1, rows=500).rows
    sent = 0.0
    for round in range(ROUNDS):
        exchange = swarm.advance(round * swarm.period, dict.fromkeys(range(PEERS), swarm.period))
        sent += sum(exchange.traffic.sent.values())
        model.load_state_dict(swarm.weights)
        loss = model.loss(heldout).item()
        print(f"round {round + 1}: held-out loss {loss:.4f}, {sent / 1e3:.1f} kB sent by each peer")
    dense = 4 * manifest.parameters * ROUNDS
    print(f"Averaging all weights as often would send {dense / 1e3:.1f} kB, {dense / sent:.0f} times as much.")


if __name__ == "__main__":
    main()
