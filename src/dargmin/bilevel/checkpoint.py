"""The state of an outer loop on disk: whole or not there, and known to belong to its problem."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


class Checkpoint:
    """One .npz file, replaced as a whole after each outer step.

    Parameters
    ----------
    path : path of the file
    label : dict
        What has to be the same for a resumption: shapes, optimizer, inner side.
    probe : array
        Numbers that the problem gives at a fixed point, by which it is known again."""

    def __init__(self, path: str | os.PathLike, label: dict[str, str], probe: Any):
        self.path, self.label = Path(path), label
        self.probe = np.asarray(probe)
        if not self.path.absolute().parent.is_dir():
            raise ValueError(
                f"checkpoint={os.fspath(path)!r}: there is no directory "
                f"{self.path.absolute().parent}. Create it first."
            )

    def save(self, state: Any, history: Float[np.ndarray, "rows columns"]) -> None:
        """Write all, then move it to its place: a kill at any moment leaves a whole file."""
        leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
        arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(
                file, label=np.asarray(json.dumps(self.label)), probe=self.probe,
                history=history, **arrays,
            )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def load(self, like: Any) -> tuple[Any, Float[np.ndarray, "rows columns"]] | None:
        """The state and the history, or None if there is no file yet.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or that of a different problem."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                stored = dict(file)
            label = json.loads(str(stored.pop("label")))
            probe, history = stored.pop("probe"), stored.pop("history")
        except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
            raise ValueError(
                f"checkpoint={os.fspath(self.path)!r} is no checkpoint of dargmin.bilevel "
                f"({error}). Delete it to start anew, or give another path."
            ) from error
        self._compare(label, probe)
        dynamic, static = eqx.partition(like, eqx.is_array)
        leaves, treedef = jax.tree.flatten(dynamic)
        found = [stored[f"leaf_{i}"] for i in range(len(stored))]
        if [np.shape(leaf) for leaf in leaves] != [np.shape(leaf) for leaf in found]:
            self._refuse("the state of the optimizer or of the warm start has other shapes")
        arrays = treedef.unflatten([jnp.asarray(leaf) for leaf in found])
        return eqx.combine(arrays, static), history

    def _compare(self, label: dict[str, str], probe: np.ndarray) -> None:
        for name in self.label:
            if label.get(name) != self.label[name]:
                self._refuse(f"its {name} is {label.get(name)}, and here it is {self.label[name]}")
        # Rounding may differ between machines; data or a formula that changed moves far more.
        noise = 1e-8 * np.max(np.abs(self.probe))
        if not np.allclose(probe, self.probe, rtol=1e-4, atol=noise, equal_nan=True):
            self._refuse("its objective, outer function or data give other numbers")

    def _refuse(self, why: str) -> None:
        raise ValueError(
            f"checkpoint={os.fspath(self.path)!r} belongs to a different problem: {why}. Give "
            "another path, or delete the file to start anew."
        )
