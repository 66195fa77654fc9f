"""What is made of trained weights: a folder that transformers loads, and text."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tsr_swarm.config.run import ModelConfig
from tsr_swarm.errors import CheckpointError
from tsr_swarm.process.machine_limits import disk_errors, memory_errors
from tsr_swarm.storage.checkpoint import write_tensors
from tsr_swarm.storage.files import fsync
from tsr_swarm.storage.run_folder import RunFolder, consensus_of, load_run
from tsr_swarm.train.data import END_OF_DOCUMENT
from tsr_swarm.train.evaluate import generate, printable
from tsr_swarm.train.llama import build_model, parameter_shapes


def sample_checkpoint(folder: Path, prompt: str, *, length: int, temperature: float, seed: int) -> str:
    """Return ``prompt`` and ``length`` bytes that the model in a run's folder adds to it. Raises CheckpointError."""
    manifest, saved = load_run(RunFolder(folder), logging.getLogger(__name__).warning)
    begin = os.fsencode(prompt)  # the bytes that were typed, whatever the locale
    with memory_errors():
        model = build_model(manifest.config.model, consensus_of(manifest, saved).weights)
        return printable(begin + generate(model, begin, length=length, temperature=temperature, seed=seed))


def export_hf(folder: Path, weights: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write ``weights`` (names of ``parameter_shapes``) to ``folder``, which must be new or empty.

    It gets config.json, model.safetensors and a tokenizer whose tokens are bytes, and appears whole or not at all.
    Raises CheckpointError.
    """
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != parameter_shapes(config):
        raise CheckpointError(
            "The weights do not fit the model section; export them with their own run's configuration."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; choose another --out.")
    texts = {
        "config.json": _llama_config(config),
        "generation_config.json": {"bos_token_id": END_OF_DOCUMENT, "eos_token_id": END_OF_DOCUMENT},
        "tokenizer.json": _byte_tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
        },
    }
    with disk_errors(f"{folder} cannot be written", "make room or choose another --out", CheckpointError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".exporting-", dir=folder.parent))
        try:
            write_tensors(temporary / "model.safetensors", weights)
            for name, content in texts.items():
                (temporary / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
                fsync(temporary / name)
            temporary.chmod(0o755)
            temporary.rename(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _llama_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(config),  # whose names are LlamaConfig's; rope_theta is read by transformers 4, rope_parameters by 5
        "head_dim": config.hidden_size // config.num_attention_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": END_OF_DOCUMENT,
        "eos_token_id": END_OF_DOCUMENT,
        "torch_dtype": "float32",
    }


def _byte_tokenizer() -> dict[str, Any]:
    """A byte-pair tokenizer without merges: token k is byte k."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {_visible(byte): byte for byte in range(256)}, "merges": []},
    }


def _visible(byte: int) -> str:
    """The character that ByteLevel writes for a byte: itself where it prints, else the next free one from U+0100."""
    return chr(byte) if _prints(byte) else chr(256 + sum(not _prints(below) for below in range(byte)))


def _prints(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
