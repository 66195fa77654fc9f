"""The built-in model is transformers' LLaMA, and what is exported loads there."""

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tsr_swarm.config.run import ModelConfig
from tsr_swarm.errors import CheckpointError, ConfigError
from tsr_swarm.storage.export import export_hf
from tsr_swarm.train.llama import KeyValue, Llama, build_model, initial_weights, parameter_shapes

LOGIT_TOLERANCE = 1e-5  # float32, the same operations in another order
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
LARGER = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 300}
CONFIGS = {
    "tied": ModelConfig(**SMALL),
    "untied": ModelConfig(**SMALL, tie_word_embeddings=False),
    "grouped": ModelConfig(**LARGER, num_attention_heads=6, num_key_value_heads=2, rope_theta=500.0, rms_norm_eps=1e-4),
}


def loud_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights large enough, norms included, that a wrong rotation, eps or head would show in the logits."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: weight + 0.1 * torch.randn(weight.shape, generator=generator)
        for name, weight in initial_weights(config, seed=1).items()
    }


def some_tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def transformers() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        module = importlib.import_module("transformers")
        module.utils.logging.disable_progress_bar()
        yield module


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_and_names_equal_those_of_transformers(kind: str, tmp_path: Path, transformers: ModuleType) -> None:
    config = CONFIGS[kind]
    weights = loud_weights(config)
    export_hf(tmp_path / "model", weights, config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    ours = build_model(config, weights)
    tokens = some_tokens(2, 100)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert {name: tuple(p.shape) for name, p in theirs.named_parameters()} == parameter_shapes(config)
    with torch.no_grad():
        assert torch.allclose(ours(tokens), theirs(tokens).logits, rtol=0, atol=LOGIT_TOLERANCE)
        assert math.isclose(ours.loss(tokens).item(), theirs(tokens, labels=tokens).loss.item(), abs_tol=1e-5)


def test_exported_tokenizer_maps_text_to_its_bytes(tmp_path: Path, transformers: ModuleType) -> None:
    config = CONFIGS["tied"]
    export_hf(tmp_path / "model", initial_weights(config, seed=0), config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    text = "".join(map(chr, range(1, 0x300))) + "  def f(x):\n\treturn 'naïve 🐍'\n"
    ids = tokenizer(text)["input_ids"]
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_export_refuses_weights_of_another_model_and_a_folder_in_use(tmp_path: Path) -> None:
    config = CONFIGS["tied"]
    weights = initial_weights(config, seed=0)
    with pytest.raises(CheckpointError, match="do not fit"):
        export_hf(tmp_path / "model", weights, CONFIGS["untied"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export_hf(tmp_path, weights, config)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_exported_config_states_the_whole_model(tmp_path: Path) -> None:
    config = CONFIGS["grouped"]
    export_hf(tmp_path / "model", initial_weights(config, seed=0), config)
    stated = json.loads((tmp_path / "model" / "config.json").read_text())
    names = [field.name for field in fields(ModelConfig)]
    assert {name: stated[name] for name in names} == {name: getattr(config, name) for name in names}


@pytest.mark.parametrize("kind", CONFIGS)
def test_shapes_are_known_without_the_weights(kind: str) -> None:
    shapes = parameter_shapes(CONFIGS[kind])
    named = dict(Llama(CONFIGS[kind]).named_parameters())
    assert list(shapes.items()) == [(name, tuple(p.shape)) for name, p in named.items()]
    assert list(initial_weights(CONFIGS[kind], seed=0)) == list(shapes)
    assert ("lm_head.weight" in shapes) == (not CONFIGS[kind].tie_word_embeddings)


def test_shapes_of_a_model_that_does_not_fit_in_memory_are_cheap() -> None:
    giant = ModelConfig(hidden_size=2**16, intermediate_size=2**18, num_hidden_layers=3, num_attention_heads=512)
    assert parameter_shapes(giant)["model.layers.2.mlp.up_proj.weight"] == (2**18, 2**16)


def test_initial_weights_follow_from_the_seed_and_leave_the_global_generator_alone() -> None:
    config = CONFIGS["tied"]
    before = torch.get_rng_state()
    first, again, other = (initial_weights(config, seed=seed) for seed in (3, 3, 4))
    build_model(config, first)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_untrained_model_predicts_bytes_uniformly() -> None:
    config = ModelConfig(hidden_size=64, num_hidden_layers=2, tie_word_embeddings=False)
    loss = build_model(config, initial_weights(config, seed=0)).loss(some_tokens(8, 65)).item()
    assert abs(loss - math.log(256)) < 0.05


@pytest.mark.parametrize("kind", CONFIGS)
def test_token_by_token_with_a_cache_gives_the_same_logits(kind: str) -> None:
    model = build_model(CONFIGS[kind], loud_weights(CONFIGS[kind]))
    tokens = some_tokens(1, 20)
    cache: list[KeyValue] = []
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in (tokens[:, :7], *tokens[:, 7:].split(1, 1))]
        assert torch.allclose(torch.cat(pieces, 1), model(tokens), rtol=0, atol=LOGIT_TOLERANCE)


def test_every_parameter_gets_a_gradient() -> None:
    model = build_model(CONFIGS["grouped"], initial_weights(CONFIGS["grouped"], seed=0))
    model.loss(some_tokens(2, 33)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_weights_of_another_shape_are_refused_by_name() -> None:
    weights = initial_weights(CONFIGS["tied"], seed=0)
    weights["model.norm.weight"] = torch.ones(31)
    with pytest.raises(ConfigError, match=r"'model\.norm\.weight' has shape \(31,\)"):
        build_model(CONFIGS["tied"], weights)
