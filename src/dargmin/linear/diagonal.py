"""The diagonal of a linear map, read from its program: no probing, no d products."""

import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dargmin.linear.programs import evaluate
from dargmin.types import LinearMap, Point

_MOVES = ("reshape", "squeeze", "expand_dims", "transpose", "slice", "rev", "broadcast_in_dim")
_SUMS = ("add", "add_any", "sub", "select_n")
_SAME = ("copy", "copy_p", "convert_element_type", "reduce_precision")
_Members = np.ndarray  # flat indices of coordinates


class _Entry(NamedTuple):
    """u = weight ∘ v[index], and beside it something that depends on the `others` of v."""

    leaf: int
    index: np.ndarray  # into the flat leaf, -1 where nothing of it is; shape of u
    weight: Array
    others: _Members
    low_rank: bool = False  # whether it is of AᵀSA with fewer rows of A than columns


class _Product(NamedTuple):
    """w = rows ∘ (matrix @ (weight ∘ v[index])), matrix (k, j), index and weight (j, f...); u is w,
    or its sum over some axes, and beside it something that depends on other entries of v[index]."""

    leaf: int
    index: np.ndarray
    weight: Array
    matrix: Array
    rows: Array  # the shape of w
    axes: tuple[int, ...]  # of w: 0 is k, 1... are f...
    summed: tuple[int, ...] = ()  # positions in w that u is a sum over
    kept: bool = False  # whether u has axes of length one in their place
    mixed: bool = False  # whether a sum over f was spread out again


class _Rest(NamedTuple):
    """u depends on `members` of v, in a way that was not followed."""

    leaf: int
    members: _Members
    where: np.ndarray  # bool, the shape of u


_Term = _Entry | _Product | _Rest


class _NotFollowed(Exception):
    """What an equation makes of a term is none of the three kinds, or only the last."""


def diagonal(operator: LinearMap, like: Point, *, full_rank: bool = False) -> Point | None:
    """The diagonal of a linear map on pytrees like `like`; None where its program does not show it.

    Sums of scalings and of maps v -> Aᵀ(s ∘ Av) are followed, and between them slices, reshapes,
    intercepts and what a softmax does: Hessians of losses of X w + b and of separable penalties
    consist of them. diag(Aᵀ S A) = (A ∘ A)ᵀ s takes about as long as a product. With `full_rank`,
    only terms with A of no fewer rows than columns are counted."""
    leaves, treedef = jax.tree.flatten(like)
    if not leaves or len({leaf.dtype for leaf in leaves}) != 1:
        return None
    program = jax.make_jaxpr(operator)(like)
    none = np.zeros(0, int)
    starts = [
        [_Entry(i, np.arange(u.size).reshape(u.shape), jnp.ones_like(u), none)]
        for i, u in enumerate(leaves)
    ]
    images = evaluate(program, starts, _is_sum, _followed)
    try:
        pairs = enumerate(zip(images, leaves, strict=True))
        found = [_read(u, i, v, full_rank) for i, (u, v) in pairs]
    except _NotFollowed:
        return None
    return jax.tree.unflatten(treedef, found)


def _read(image: Any, leaf: int, like: Array, full_rank: bool) -> Array:
    """The entries of an output that are those of the input at the same place."""
    total = jnp.zeros_like(like)
    own = np.arange(like.size).reshape(like.shape)
    for term in image if _is_sum(image) else []:
        if term.leaf != leaf:
            continue
        if isinstance(term, _Product):
            term = _on_the_diagonal(term)
        if isinstance(term, _Rest):
            hidden = term.where & np.isin(own, term.members)
        else:
            here = term.index == own
            hidden = ~here & (term.index >= 0) & np.isin(own, term.others)
            weight = term.weight if np.all(here) else jnp.where(here, term.weight, 0)
            if not (full_rank and term.low_rank):
                total = total + weight
        if np.any(hidden):
            raise _NotFollowed
    return total


def _on_the_diagonal(term: _Product) -> _Entry | _Rest:
    """A square matrix times v, at the places of v."""
    if term.matrix.shape[0] != term.matrix.shape[1] or term.summed:
        return _Rest(term.leaf, _members(term), np.ones(_shape(term), bool))
    weight = jnp.moveaxis(jnp.diagonal(term.matrix) * jnp.moveaxis(term.weight, 0, -1), -1, 0)
    place = lambda array: array.transpose(term.axes)
    return _Entry(term.leaf, place(term.index), place(weight) * term.rows, _members(term))


def _members(term: _Term) -> _Members:
    if isinstance(term, _Rest):
        return term.members
    own = np.unique(term.index[term.index >= 0])
    return np.union1d(own, term.others) if isinstance(term, _Entry) else own


def _shape(term: _Term) -> tuple[int, ...]:
    """That of u."""
    if isinstance(term, _Entry):
        return term.index.shape
    if isinstance(term, _Rest):
        return term.where.shape
    sizes = enumerate(term.rows.shape)
    if term.kept:
        return tuple(1 if p in term.summed else n for p, n in sizes)
    return tuple(n for p, n in sizes if p not in term.summed)


def _is_sum(value: Any) -> bool:
    """Whether a value depends on v: then it is a list of terms. What a linear program adds to such
    a sum, or selects beside it, that does not depend on v is zero."""
    return isinstance(value, list)


def _followed(equation: Any, inputs: list[Any], run: Any) -> list[Any]:
    """What an equation makes of every term; of those that cannot be followed, the rest."""
    moving = [_is_sum(value) for value in inputs]
    if equation.primitive.name == "dot_general":
        inputs = [_merged(u) if moves else u for u, moves in zip(inputs, moving, strict=True)]
    shapes = [v.aval.shape for v in equation.outvars]
    outputs: list[list[_Term]] = [[] for _ in shapes]
    alone = len(shapes) == 1 and (sum(moving) == 1 or equation.primitive.name in _SUMS)
    for place, value in enumerate(inputs):
        for term in value if moving[place] else []:
            try:
                if not alone:
                    raise _NotFollowed
                outputs[0].append(_image(term, equation, inputs, place, run))
            except _NotFollowed:
                for output, shape in zip(outputs, shapes, strict=True):
                    output.append(_Rest(term.leaf, _members(term), np.ones(shape, bool)))
    return outputs


def _merged(terms: list[_Term]) -> list[_Term]:
    """The same sum, products with the same matrix in one."""
    merged: list[_Term] = []
    for term in terms:
        for place, other in enumerate(merged):
            if isinstance(term, _Product) and isinstance(other, _Product):
                same = all(getattr(term, a) is getattr(other, a) for a in ("matrix", "weight"))
                alike = term.axes == other.axes and not (term.summed or other.summed)
                if same and alike and np.array_equal(term.index, other.index):
                    merged[place] = other._replace(rows=other.rows + term.rows, mixed=True)
                    break
        else:
            merged.append(term)
    return merged


def _image(term: _Term, equation: Any, inputs: list[Any], place: int, run: Any) -> _Term:
    """What an equation makes of one term of the input at `place`, the others being constants."""
    name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
    other: Any = inputs[1 - place] if len(inputs) == 2 else None
    if name in ("add", "add_any") or name in _SAME:
        return _scaled(term, 1, shape)
    if name == "neg" or name == "sub":
        return _scaled(term, -1 if name == "neg" or place == 1 else 1, shape)
    if name == "select_n" and place > 0:
        case = jnp.asarray(place - 1, inputs[0].dtype)
        return _scaled(term, inputs[0] == case, shape)
    if name == "mul" or (name == "dot_general" and jnp.ndim(other) == 0):
        return _scaled(term, other, shape)
    if name == "div" and place == 0:
        return _scaled(term, 1 / other, shape)
    if name == "dot_general":
        return _contracted(term, params["dimension_numbers"], place, other)
    if name == "pad" and place == 0:
        return _padded(term, params["padding_config"])
    if name == "reduce_sum":
        return _reduced(term, params["axes"])
    if name in _MOVES:
        return _moved(term, equation, run)
    raise _NotFollowed


def _scaled(term: _Term, by: Any, shape: tuple[int, ...]) -> _Term:
    """by ∘ u, spread out to `shape` where axes of length one are."""
    if _shape(term) != shape:
        term = _widened(term, shape, tuple(range(len(_shape(term)))))
    if isinstance(term, _Rest):
        return term
    by = jnp.asarray(by, term.weight.dtype)
    if isinstance(term, _Entry):
        return term._replace(weight=term.weight * by)
    if by.ndim and term.summed and not term.kept:
        by = jnp.expand_dims(by, term.summed)
    return term._replace(rows=term.rows * by)


def _contracted(term: _Term, dimensions: Any, place: int, matrix: Any) -> _Term:
    """The term in a product with a constant matrix, over one axis."""
    (contracted, batch) = dimensions
    if isinstance(term, _Rest) or any(batch) or matrix.ndim != 2 or len(contracted[place]) != 1:
        raise _NotFollowed
    axis, other = contracted[place][0], contracted[1 - place][0]
    matrix = jnp.asarray(matrix if other == 1 else matrix.T)
    if isinstance(term, _Entry):
        if term.others.size:
            raise _NotFollowed
        index, weight = np.moveaxis(term.index, axis, 0), jnp.moveaxis(term.weight, axis, 0)
        rest = tuple(range(1, index.ndim))
        axes = (*rest, 0) if place == 0 else (0, *rest)
        sizes = (matrix.shape[0], *index.shape[1:])
        rows = jnp.ones([sizes[a] for a in axes], weight.dtype)
        return _Product(term.leaf, index, weight, matrix, rows, axes)
    if term.summed or term.axes[axis] != 0 or matrix.shape[0] != term.matrix.shape[1]:
        raise _NotFollowed
    # out[i, f] = Σ_kj matrix[i, k] rows[k, f] term.matrix[k, j] v[j, f], of which i = j counts
    letters = string.ascii_letters[: term.index.ndim]  # of k and f...
    j = string.ascii_letters[term.index.ndim]
    rows = "".join(letters[a] for a in term.axes)
    left = [letters[a] for a in term.axes if a != 0]
    out = [*left, j] if place == 0 else [j, *left]
    square = jnp.einsum(
        f"{j}{letters[0]},{letters[0]}{j},{rows}->{''.join(out)}", matrix, term.matrix, term.rows
    )
    order = [(j, *letters[1:]).index(letter) for letter in out]
    weight = square * jnp.transpose(term.weight, order)
    index, low_rank = np.transpose(term.index, order), len(term.matrix) < term.index.shape[0]
    return _Entry(term.leaf, index, weight, _members(term), low_rank)


def _reduced(term: _Term, axes: tuple[int, ...]) -> _Term:
    """The sum over some f axes, as in a softmax, of which only what comes back to them counts; or
    over k, as in the gradient of an intercept."""
    if isinstance(term, _Rest):
        raise _NotFollowed
    if isinstance(term, _Entry):
        if any(term.index.shape[a] != 1 for a in axes):
            raise _NotFollowed
        return term._replace(index=term.index.squeeze(axes), weight=term.weight.squeeze(axes))
    if term.kept and tuple(axes) == term.summed:
        return term._replace(kept=False)
    if term.summed:
        raise _NotFollowed
    if len(axes) == 1 and term.axes[axes[0]] == 0:
        ones = jnp.ones((term.matrix.shape[0], 1), term.weight.dtype)
        found = _contracted(term, (((axes[0],), (0,)), ((), ())), 0, ones)
        assert isinstance(found, _Entry)
        return found._replace(index=found.index.squeeze(-1), weight=found.weight.squeeze(-1))
    if term.mixed or any(term.axes[a] == 0 for a in axes):
        raise _NotFollowed
    return term._replace(summed=tuple(axes))


def _widened(term: _Term, shape: tuple[int, ...], where: Any) -> _Term:
    """u repeated along axes: those that it was summed over, or, as an intercept is, along one."""
    if isinstance(term, _Rest):
        raise _NotFollowed
    if isinstance(term, _Product):
        if term.summed and term.rows.shape == shape:
            return term._replace(summed=(), kept=False, mixed=True)
        for kept in (True, False):
            if term.summed and _shape(term._replace(kept=kept)) == shape:
                return term._replace(kept=kept)
        raise _NotFollowed
    long = {a for a, n in zip(where, term.index.shape, strict=True) if n > 1}
    new = [a for a, n in enumerate(shape) if n > 1 and a not in long]
    if term.others.size or len(new) != 1:
        raise _NotFollowed
    rest = [n for a, n in enumerate(shape) if a != new[0]]
    index, weight = term.index.reshape(1, *rest), term.weight.reshape(1, *rest)
    axes = [a + 1 if a < new[0] else a for a in range(len(shape))]
    axes[new[0]] = 0
    ones = jnp.ones((shape[new[0]], 1), weight.dtype)
    return _Product(term.leaf, index, weight, ones, jnp.ones(shape, weight.dtype), tuple(axes))


def _padded(term: _Term, config: Any) -> _Term:
    if isinstance(term, _Product):
        raise _NotFollowed
    around = lambda array, value: jax.lax.pad(array, jnp.asarray(value, array.dtype), config)
    with jax.ensure_compile_time_eval():
        if isinstance(term, _Rest):
            return term._replace(where=np.asarray(around(jnp.asarray(term.where), False)))
        index = np.asarray(around(jnp.asarray(term.index), -1))
    return term._replace(index=index, weight=around(term.weight, 0))


def _moved(term: _Term, equation: Any, run: Any) -> _Term:
    """The term with its entries elsewhere, as the equation moves those of u."""
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    if name == "broadcast_in_dim" and np.prod(shape) != np.prod(_shape(term)):
        return _widened(term, shape, equation.params["broadcast_dimensions"])
    if isinstance(term, _Product):
        if term.summed:
            return _widened(term, shape, ())
        if name != "transpose":
            raise _NotFollowed
        axes = tuple(term.axes[p] for p in equation.params["permutation"])
        return term._replace(axes=axes, rows=run(term.rows)[0])

    def moved(array: np.ndarray) -> np.ndarray:
        with jax.ensure_compile_time_eval():
            return np.asarray(equation.primitive.bind(jnp.asarray(array), **equation.params))

    if isinstance(term, _Rest):
        return term._replace(where=moved(term.where))
    return term._replace(index=moved(term.index), weight=run(term.weight)[0])
