"""All parameters of a model as one vector, so that an exchange is a few operations on all of them at once."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

FLOAT_BYTES = 4  # of a number that is sent as it is


class FlatParameters:
    """Where each parameter lies in a vector of ``size`` numbers (P), in the order of ``shapes``."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def parts(self, vectors: Tensor) -> Iterator[Tensor]:
        """Each parameter's numbers in ``vectors`` (..., P), as a view (..., numbers)."""
        start = 0
        for shape in self.shapes.values():
            count = math.prod(shape)
            yield vectors[..., start : start + count]
            start += count

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """Each parameter's numbers in ``vectors`` (..., P), as a view (..., *its shape), by name."""
        named = zip(self.shapes.items(), self.parts(vectors), strict=True)
        return {name: part.view(*part.shape[:-1], *shape) for (name, shape), part in named}

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A new vector (P,), float32, of a tensor for every parameter."""
        return torch.cat([tensors[name].detach().reshape(-1).to(torch.float32) for name in self.shapes])


def flat_of(weights: Mapping[str, Tensor]) -> FlatParameters:
    """The layout of a model's weights."""
    return FlatParameters({name: tuple(weight.shape) for name, weight in weights.items()})


def is_embedding(name: str) -> bool:
    """Whether a parameter is an embedding or the head, by the names of transformers."""
    return name.endswith(("embed_tokens.weight", "lm_head.weight"))


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix of a layer: two-dimensional, and neither embedding nor head."""
    return len(shape) == 2 and not is_embedding(name)
