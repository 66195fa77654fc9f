"""The held-out loss of a consensus."""

from collections.abc import Callable

from tsr_swarm.config.run import RunConfig
from tsr_swarm.optim.consensus import Consensus
from tsr_swarm.train.data import heldout_tokens
from tsr_swarm.train.evaluate import held_out_loss, heldout_batches
from tsr_swarm.train.llama import Llama
from tsr_swarm.train.unread import Warn


def make_evaluate(config: RunConfig, warn: Warn) -> Callable[[Consensus], float]:
    """Held-out loss of a consensus, nats a token. Reads the data now; raises ConfigError if there is none.

    ``warn`` hears what of it could not be read.
    """
    batches = heldout_batches(heldout_tokens(config.data, warn), config.data)
    model = Llama(config.model)

    def evaluate(consensus: Consensus) -> float:
        model.load_state_dict(dict(consensus.weights))
        return held_out_loss(model, batches)

    return evaluate
