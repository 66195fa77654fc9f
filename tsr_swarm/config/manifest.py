"""The manifest of a run: what the coordinator serves first, and every peer must have to the byte."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from tsr_swarm.config.blocks import MAX_RANK, Block, BlockRole, plan_blocks
from tsr_swarm.config.layout import block_bytes, check_budget, split_blocks
from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.run import CheckpointConfig, RoundConfig, RunConfig
from tsr_swarm.errors import ConfigError, RefusedError

PROTOCOL_VERSION = 6
MAX_MANIFEST_BYTES = 4 << 20
_MAX_BLOCK_SIZE = 2**40


@dataclass(frozen=True)
class Manifest:
    """A run's configuration, its id and its blocks. ``digest`` names it: equal digests mean equal runs."""

    run_id: str
    config: RunConfig
    blocks: tuple[Block, ...]

    @cached_property
    def encoded(self) -> bytes:
        """Canonical JSON; the same manifest gives the same bytes everywhere."""
        config = asdict(self.config)
        del config["checkpoint"]
        config["round"] = {"shards": self.config.round.shards}
        document = {
            "protocol": PROTOCOL_VERSION,
            "run_id": self.run_id,
            "config": config,
            "blocks": [_encode_block(block) for block in self.blocks],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        return hashlib.blake2b(self.encoded, digest_size=32).hexdigest()

    @cached_property
    def shard_blocks(self) -> tuple[tuple[int, ...], ...]:
        """The blocks of each shard of every round, about as many bytes in each."""
        return split_blocks(block_bytes(self.blocks, self.config.wire), self.config.round.shards)

    @cached_property
    def shard_bytes(self) -> tuple[int, ...]:
        """Bytes of a contribution by shard: what shards are shared out by among reducers."""
        sizes = block_bytes(self.blocks, self.config.wire)
        return tuple(sum(sizes[block] for block in blocks) for blocks in self.shard_blocks)

    @property
    def parameters(self) -> int:
        return sum(block.size for block in self.blocks)


def make_manifest(run_id: str, config: RunConfig, shapes: Mapping[str, tuple[int, ...]]) -> Manifest:
    """Plan the blocks of a model and put them beside its configuration. Raises ConfigError."""
    # What only a leader or one machine needs may change when a run is resumed; it is not part of the run's name.
    run = replace(config.run, rounds=0, min_peers=1)
    round = RoundConfig(shards=config.round.shards)
    shared = replace(config.definite(), run=run, round=round, checkpoint=CheckpointConfig())
    blocks = plan_blocks(shapes, config.optimizer, config.model.hidden_size)
    check_budget(config, blocks)
    return Manifest(run_id, shared, blocks)


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest from a coordinator. Every field is checked as if a user had typed it; raises RefusedError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise RefusedError(f"The manifest has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}; it is refused.")
    try:
        document = json.loads(data)
        if document["protocol"] != PROTOCOL_VERSION:
            raise RefusedError(
                f"The run speaks protocol {document['protocol']}, this program {PROTOCOL_VERSION}; "
                "install the version that the run's organiser uses."
            )
        run_id = document["run_id"]
        if not (isinstance(run_id, str) and 0 < len(run_id) <= 64 and run_id.isascii() and run_id.isalnum()):
            raise ValueError("run_id")
        config = run_config_from_mapping(document["config"]).definite()
        is_lordo = config.optimizer.inner == "lordo"
        blocks = tuple(replace(_decode_block(entry), is_lordo=is_lordo) for entry in document["blocks"])
    except RefusedError:
        raise
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"The coordinator's manifest is not valid ({error}); ask its organiser.") from error
    manifest = Manifest(run_id, config, blocks)
    if manifest.encoded != data:
        raise RefusedError("The coordinator's manifest is not in its one legal form; ask its organiser.")
    return manifest


def _encode_block(block: Block) -> list[Any]:
    shape = [block.rows, block.cols, block.rank]
    return [block.name, *shape, block.role.value, block.is_proportional, block.oversampling]


def _decode_block(entry: Any) -> Block:
    name, rows, cols, rank, role, is_proportional, oversampling = entry
    has_name = isinstance(name, str) and 0 < len(name) <= 256
    has_numbers = (
        all(type(v) is int and v >= 0 for v in (rows, cols, rank, oversampling)) and 0 < rows * cols < _MAX_BLOCK_SIZE
    )
    if not (has_name and has_numbers and type(is_proportional) is bool):
        raise ValueError(f"block {str(name)[:80]!r}")
    block = Block(
        name=name,
        rows=rows,
        cols=cols,
        rank=rank,
        role=BlockRole(role),
        is_proportional=is_proportional,
        oversampling=oversampling,
    )
    if block.is_low_rank != (0 < rank <= min(rows, cols)) or max(block.ranks) > MAX_RANK:
        raise ValueError(f"rank {rank} of block {name[:80]!r}")
    if oversampling and block.sketch_width > min(rows, cols, MAX_RANK):
        raise ValueError(f"oversampling {oversampling} of block {name[:80]!r}")
    return block
