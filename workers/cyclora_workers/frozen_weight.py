"""What the products of a frozen linear layer need to know of its weight.

Legend: T packed tokens, D features in, F features out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from cyclora_workers.rows import linear_with_aligned_rows


class FrozenWeight(ABC):
    """A weight [F, D] that gets no gradient, however it is kept in memory.

    Every product is one of the whole dense matrix, whatever rows there are: so a row's bits are as
    independent of its neighbours with quantised weights as with others.
    """

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix in the dtype of the base model, for one product; not to be kept or changed."""

    def product(self, x_TD: Tensor, bias_F: Tensor | None) -> Tensor:
        """``x W^T + bias``, in aligned rows; no autograd."""
        return linear_with_aligned_rows(x_TD, self.dense(), bias_F)

    def transposed_product(self, dy_TF: Tensor) -> Tensor:
        """``dy W``, in aligned rows; no autograd."""
        return linear_with_aligned_rows(dy_TF, self.dense().t(), None)


@dataclass(frozen=True, slots=True)
class DenseWeight(FrozenWeight):
    """A weight kept as it is used."""

    weight_FD: Tensor

    def dense(self) -> Tensor:
        return self.weight_FD
