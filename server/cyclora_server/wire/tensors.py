"""Arrays as clients send them, dense or sparse, in protobuf or JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cyclora_core.errors import PayloadTooLarge, UserError
from cyclora_core.payload import Array
from cyclora_core.samples import Cells
from cyclora_server.wire import schema
from cyclora_server.wire.bodies import TensorData

_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int64": np.dtype("<i8")}
_PROTO_DTYPES = {schema.DTYPE_FLOAT32: "float32", schema.DTYPE_INT64: "int64"}
_INT64 = np.dtype("<i8")
_MAX_COLUMNS = 2**31 - 1


class Budget:
    """Bytes that the tensors of one request may still take.

    A sparse tensor of a few bytes can declare any shape; what it would occupy is counted before
    anything is allocated.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def take(self, num_bytes: int) -> None:
        """Claim bytes.

        Raises:
            PayloadTooLarge: the request's tensors are too large together.
        """
        self._left -= num_bytes
        if self._left < 0:
            raise PayloadTooLarge(
                f"the tensors of one request may take {self._max_bytes} bytes when dense"
            )


def from_proto(name: str, tensor: Any, budget: Budget) -> Array:
    """A protobuf ``Tensor`` as a dense array."""
    dtype_name = _PROTO_DTYPES.get(tensor.dtype)
    if dtype_name is None:
        raise UserError(f"{name} has dtype {tensor.dtype}; expected FLOAT32 (1) or INT64 (2)")
    dtype = _DTYPES[dtype_name]
    shape = list(tensor.shape)
    encoding = tensor.WhichOneof("encoding")
    if encoding == "sparse_csr":
        csr = tensor.sparse_csr
        return _densify(
            name,
            _from_bytes(f"{name} values", csr.values, dtype),
            _from_bytes(f"{name} crow_indices", csr.crow_indices, _INT64),
            _from_bytes(f"{name} col_indices", csr.col_indices, _INT64),
            shape,
            budget,
        )
    budget.take(len(tensor.dense))
    return _shaped(name, _from_bytes(name, tensor.dense, dtype), shape)


def from_json(name: str, tensor: TensorData, budget: Budget) -> Array:
    """A JSON ``TensorData`` as a dense array."""
    if tensor.dtype not in _DTYPES:
        raise UserError(f"{name} has dtype {tensor.dtype[:40]!r}; expected float32 or int64")
    shape = list(tensor.shape or ())
    if tensor.sparse_crow_indices is None:
        values = _from_list(name, tensor.data, _DTYPES[tensor.dtype])
        budget.take(values.nbytes)
        return _shaped(name, values, shape)
    values, crow, col = _csr_from_json(name, tensor)
    return _densify(name, values, crow, col, shape, budget)


def cells_from_json(name: str, tensor: TensorData, budget: Budget) -> tuple[Cells, Array]:
    """A two-dimensional JSON ``TensorData`` in its own layout: where its values stand, and these.

    A sparse one stays sparse, however many cells its shape declares.
    """
    if tensor.sparse_crow_indices is None:
        dense = from_json(name, tensor, budget)
        if dense.ndim != 2:
            raise UserError(f"{name} has shape {list(dense.shape)}; expected [N, K]")
        return Cells(dense.shape[0], dense.shape[1]), dense.reshape(-1)
    if tensor.dtype not in _DTYPES:
        raise UserError(f"{name} has dtype {tensor.dtype[:40]!r}; expected float32 or int64")
    values, crow, col = _csr_from_json(name, tensor)
    shape = list(tensor.shape or ())
    _check_csr(name, values, crow, col, shape)
    if shape[1] > _MAX_COLUMNS:
        raise UserError(f"{name} has {shape[1]} columns; at most {_MAX_COLUMNS} are accepted")
    budget.take(values.nbytes + crow.nbytes + col.nbytes)
    return Cells(shape[0], shape[1], crow, col), values


def _csr_from_json(name: str, tensor: TensorData) -> tuple[Array, Array, Array]:
    values = _from_list(name, tensor.data, _DTYPES[tensor.dtype])
    crow = _from_list(f"{name} sparse_crow_indices", tensor.sparse_crow_indices or [], _INT64)
    col = _from_list(f"{name} sparse_col_indices", tensor.sparse_col_indices or [], _INT64)
    return values, crow, col


def _from_bytes(name: str, data: bytes, dtype: np.dtype[Any]) -> Array:
    if len(data) % dtype.itemsize:
        raise UserError(
            f"{name} has {len(data)} bytes, which is no multiple of {dtype.itemsize} ({dtype.name})"
        )
    return np.frombuffer(data, dtype)


def _from_list(name: str, values: Sequence[Any], dtype: np.dtype[Any]) -> Array:
    try:
        array = np.asarray(values) if len(values) else np.zeros(0, dtype)
    except (ValueError, OverflowError):
        raise UserError(f"{name} is not a flat list of numbers") from None
    accepted = "iu" if dtype.kind == "i" else "iuf"
    if array.ndim != 1 or array.dtype.kind not in accepted:
        raise UserError(f"{name} is not a flat list of {dtype.name} numbers")
    if array.dtype.kind == "u":
        raise UserError(f"{name} holds a number outside the range of int64")
    with np.errstate(over="ignore"):  # an overflow becomes inf, which validation refuses
        return array.astype(dtype)


def _shaped(name: str, values: Array, shape: list[int]) -> Array:
    """Dense values in their declared shape; no shape means one dimension."""
    if not shape:
        return values
    _check_shape(name, shape)
    if math.prod(shape) != values.size:
        raise UserError(f"{name} has {values.size} elements, which do not fill its shape {shape}")
    return values.reshape(shape)


def _check_shape(name: str, shape: list[int]) -> None:
    if len(shape) > 2 or min(shape) < 0:
        raise UserError(f"{name} has shape {shape[:8]}; expected [N] or [N, K]")


def _densify(
    name: str, values: Array, crow: Array, col: Array, shape: list[int], budget: Budget
) -> Array:
    """A compressed-sparse-row matrix in full; cells it does not list are 0."""
    _check_two_dimensions(name, shape)
    rows, columns = shape
    budget.take(rows * columns * values.dtype.itemsize)
    _check_csr(name, values, crow, col, shape)
    dense = np.zeros((rows, columns), values.dtype)
    dense[np.repeat(np.arange(rows), np.diff(crow)), col] = values
    return dense


def _check_two_dimensions(name: str, shape: list[int]) -> None:
    _check_shape(name, shape or [0])
    if len(shape) != 2:
        raise UserError(f"{name} is sparse with shape {shape}; sparse tensors need shape [N, K]")


def _check_csr(name: str, values: Array, crow: Array, col: Array, shape: list[int]) -> None:
    _check_two_dimensions(name, shape)
    rows, columns = shape
    counts = np.diff(crow)
    if (
        crow.size != rows + 1
        or crow[0] != 0
        or crow[-1] != values.size
        or col.size != values.size
        or bool(np.any(counts < 0))
    ):
        raise UserError(
            f"{name} is not a valid sparse tensor: {rows} rows need {rows + 1} row pointers from "
            f"0 to the number of values ({values.size}), never falling, and one column per value"
        )
    if values.size and (col.min() < 0 or col.max() >= columns):
        raise UserError(f"{name} has a column index outside 0..{columns - 1}")
