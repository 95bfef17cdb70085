"""Gradients that are never written out: for a batch of one, a dense layer's gradient is an outer product, and a distance can read it in that form.

For one input x (d,) and the loss's derivative by the outputs y (f,) the gradient of a kernel is x y'. Its inner product with a target T is <x T, y>, and
its squared norm over counted entries C is <x^2 C, y^2>: two passes over T and two over C for value and derivative, where the matrix written out takes a
dozen (measured in `benchmarks/engine.py`). The factors are found in the traced update itself, by an interpreter of the kind that JAX documents, so they
are available for every model that multiplies matrices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core
from jaxtyping import Float

from selgrad.base import Grads


class Outer(NamedTuple):
    """An outer product in the shape of a leaf: the gradient of a dense layer's kernel for a batch of one.

    For more rows the gradient is a product of matrices, and the terms of a masked norm multiply as fast as passes are saved: from two rows on the gradient
    is written out (`benchmarks/engine.py` has the times).

    Attributes:
      left: (d,), the inputs.
      right: (f,), the loss's derivative by the outputs.
      shape: of the leaf, d f entries.
    """

    left: Float[Array, " d"]
    right: Float[Array, " f"]
    shape: tuple[int, ...]

    def dense(self) -> Array:
        """Writes the leaf out."""
        return jnp.outer(self.left, self.right).reshape(self.shape)

    def inner(self, target: Array) -> Float[Array, ""]:
        """Returns the inner product with an array of the leaf's shape."""
        return jnp.dot(self.left @ self._matrix(target), self.right)

    def square(self, counted: Array) -> Float[Array, ""]:
        """Returns the squared norm over the entries that count, marked 1 or 0."""
        return jnp.dot(self.left**2 @ self._matrix(counted).astype(self.left.dtype), self.right**2)

    def _matrix(self, leaf: Array) -> Array:
        return leaf.reshape(self.left.size, self.right.size)


def is_outer(leaf: Any) -> bool:
    """Says whether a leaf is an `Outer`, for `is_leaf`."""
    return isinstance(leaf, Outer)


def enabled() -> bool:
    """Says whether factors are used; `SELGRAD_FACTORS=0` turns them off."""
    return os.environ.get("SELGRAD_FACTORS", "1") != "0"


def factored(function: Callable[..., Grads], *arguments: Any) -> Any:
    """Returns a function's result with `Outer` in place of each leaf that it computes as a product over one row and then only reshapes or transposes.

    A product over more rows that is transposed afterwards is computed the other way round instead: differentiating a dense layer transposes its kernel's
    gradient, which is a pass over it.

    Args:
      function: arguments -> a pytree of arrays; it closes over no traced values.
      arguments: pytrees of arrays.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), arguments)
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*shapes)
    parts = _interpret(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
    leaves = [part.leaf() if isinstance(part, _Product) else part for part in parts]
    return jax.tree.unflatten(jax.tree.structure(shape), leaves)


class _Product:
    """A product of two matrices that is not computed until it is needed, and the reshapes applied to it since.

    Attributes:
      left, right: (rows, d) and (rows, f).
      dims: number of axes of the product that come from `left`; 0 after a reshape, when axes are no longer those of the factors.
      shape: the current shape.
      turned: whether it was transposed.
    """

    def __init__(self, compute: Callable[[], Array], left: Array, right: Array, dims: int, shape: tuple[int, ...], turned: bool = False) -> None:
        self._compute, self._left, self._right, self._dims, self._shape, self._turned = compute, left, right, dims, shape, turned
        self._computed: Array | None = None

    def value(self) -> Array:
        """Returns the product, computed once."""
        if self._computed is None:
            self._computed = self._compute()
        return self._computed

    def leaf(self) -> Array | Outer:
        """Returns the form in which it appears in a gradient."""
        if len(self._left) == 1:
            return Outer(self._left[0], self._right[0], self._shape)
        if self._turned:
            return jax.lax.dot_general(self._left, self._right, (((0,), (0,)), ((), ()))).reshape(self._shape)
        return self.value()

    def reshaped(self, compute: Callable[[Any], Array], shape: tuple[int, ...]) -> _Product:
        """Returns the product with the same entries in the same order."""
        return _Product(lambda: compute(self.value()), self._left, self._right, 0, shape, self._turned)

    def transposed(self, compute: Callable[[Any], Array], order: Sequence[int]) -> _Product | None:
        """Returns the product with its factors swapped where the transposition swaps their axes as blocks; None for other transpositions."""
        axes = list(range(len(self._shape)))
        if not self._dims or list(order) != axes[self._dims :] + axes[: self._dims]:
            return None
        shape = tuple(self._shape[axis] for axis in order)
        return _Product(lambda: compute(self.value()), self._right, self._left, len(axes) - self._dims, shape, True)


def _value(part: Any) -> Any:
    return part.value() if isinstance(part, _Product) else part


def _matrix(operand: Array, contracted: Sequence[int]) -> Array:
    """Reshapes an operand to (rows, others), contracted axes first."""
    free = [axis for axis in range(operand.ndim) if axis not in contracted]
    moved = jnp.transpose(operand, (*contracted, *free)) if [*contracted, *free] != list(range(operand.ndim)) else operand
    rows = 1
    for axis in contracted:
        rows *= operand.shape[axis]
    return moved.reshape(rows, -1)


def _product(equation: Any, compute: Callable[[], Array], operands: Sequence[Any]) -> _Product | None:
    """Returns a product whose computation can wait, if the equation is one."""
    name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
    if name == "selgrad_product" and params["kind"] == "tn" and len(shape) == 2:
        left, right = map(_value, operands)
        return _Product(compute, left, right, 1, shape)
    if name == "dot_general":
        (first, second), (batch, _) = params["dimension_numbers"]
        left, right = map(_value, operands)
        if not batch and first and left.dtype == right.dtype and len(shape) >= 2 and left.ndim > len(first) and right.ndim > len(second):
            return _Product(compute, _matrix(left, first), _matrix(right, second), left.ndim - len(first), shape)
    return None


def _interpret(jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluates equation by equation; products, also reshaped or transposed ones, wait until something else needs them."""
    env: dict[core.Var, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in ("pjit", "jit", "closed_call"):
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            outputs = _interpret(inner.jaxpr, inner.consts, operands)
        else:
            outputs = _equation(equation, operands)
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(equation: Any, operands: Sequence[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params

    def bind(*values: Any) -> Any:
        bind_params = equation.primitive.get_bind_params(params)
        # Older versions of JAX return a pair with functions, newer ones the parameters alone.
        functions, rest = bind_params if isinstance(bind_params, tuple) else ((), bind_params)
        with equation.ctx.manager:
            return equation.primitive.bind(*functions, *values, **rest)

    if operands and isinstance(operands[0], _Product):
        waiting: _Product | None = None
        if name == "reshape" and params["dimensions"] is None:
            waiting = operands[0].reshaped(bind, params["new_sizes"])
        elif name == "transpose":
            waiting = operands[0].transposed(bind, params["permutation"])
        elif name == "copy":
            waiting = operands[0]
        if waiting is not None:
            return [waiting]
    compute = lambda: bind(*map(_value, operands))
    waiting = _product(equation, compute, operands)
    if waiting is not None:
        return [waiting]
    outputs = compute()
    return list(outputs) if equation.primitive.multiple_results else [outputs]
