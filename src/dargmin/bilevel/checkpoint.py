"""The state of an outer loop on disk: whole or not there, and known to belong to its problem."""

import json
import os
import socket
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

FORMAT = 2
"""The version of what is in the file."""

History = Float[np.ndarray, "rows columns"]
Record = Float[np.ndarray, "calls width"]


class Checkpoint:
    """One .npz file, replaced as a whole after each outer step.

    Parameters
    ----------
    path : path of the file
    label : dict
        What has to be the same for a resumption: shapes, optimizer, inner side.
    probes : dict of arrays
        Numbers that have to be the same but for rounding, by name: where the loop starts, its
        bounds, and what the problem gives at a fixed point, by which it is known again.

    Raises
    ------
    ValueError
        If nothing can be written there."""

    def __init__(self, path: str | os.PathLike, label: dict[str, str], probes: dict[str, Any]):
        self.path, self.label = Path(path), label
        self.probes = {name: np.asarray(value) for name, value in probes.items()}
        host = "".join(c for c in socket.gethostname() if c.isalnum() or c == "-")
        self._prefix = f"{self.path.name}.{host}."
        self._require_writable()
        self._sweep()

    def save(self, state: Any, history: History, tape: Record) -> None:
        """Write all, then move it to its place: a kill at any moment leaves a whole file."""
        leaves = jax.tree.leaves(eqx.filter(state, _is_array))
        arrays: dict[str, Any] = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        arrays |= {f"probe {name}": value for name, value in self.probes.items()}
        with self._temporary.open("wb") as file:
            np.savez(
                file, format=np.asarray(FORMAT), label=np.asarray(json.dumps(self.label)),
                history=history, tape=tape, **arrays,
            )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._temporary, self.path)

    def load(self, like: Any) -> tuple[Any, History, Record] | None:
        """The state, the history and the tape, or None if there is no file yet.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or that of a different problem."""
        if not self.path.exists():
            return None
        stored = self._read()
        if "label" not in stored or int(stored.get("format", 1)) != FORMAT:
            version = f"format {int(stored.get('format', 1))}, and not {FORMAT}"
            raise self._unusable(version if "label" in stored else "it has no label")
        self._compare(stored)
        dynamic, static = eqx.partition(like, _is_array)
        leaves, treedef = jax.tree.flatten(dynamic)
        names = [f"leaf_{i}" for i in range(len(leaves))]
        extra = f"leaf_{len(leaves)}" in stored
        if extra or not {"history", "tape", *names} <= stored.keys():
            raise self._unusable("parts of it are missing, or not its own")
        found = [stored[name] for name in names]
        if not all(map(_alike, leaves, found)):
            raise self._other("the state of the optimizer or of the warm start has other shapes")
        # What is NumPy's stays float64, whatever JAX does.
        arrays = [
            np.asarray(f, leaf.dtype) if isinstance(leaf, np.ndarray) else jnp.asarray(f)
            for f, leaf in zip(found, leaves, strict=True)
        ]
        return (
            eqx.combine(treedef.unflatten(arrays), static), stored["history"], stored["tape"],
        )  # fmt: skip

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(f"{self._prefix}{os.getpid()}.tmp")

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with self.path.open("rb") as file:
                arrays = np.load(file, allow_pickle=False)
                if not isinstance(arrays, np.lib.npyio.NpzFile):
                    raise ValueError("it is a single array")
                stored = dict(arrays)
            if "label" in stored:
                label = json.loads(str(stored["label"]))
                if not isinstance(label, dict):
                    raise ValueError("its label is none")
                int(stored.get("format", 1))
            return stored
        # Whatever a file that someone else wrote makes the readers say.
        except (
            zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError,
            NotImplementedError, RuntimeError, MemoryError,
        ) as error:  # fmt: skip
            raise self._unusable(str(error).splitlines()[0] if str(error) else "empty") from error

    def _compare(self, stored: dict[str, np.ndarray]) -> None:
        label = json.loads(str(stored["label"]))
        for name in self.label:
            if label.get(name) != self.label[name]:
                raise self._other(
                    f"its {name} is {label.get(name)}, and here it is {self.label[name]}"
                )
        for name, value in self.probes.items():
            before = stored.get(f"probe {name}")
            if before is None or before.dtype.kind not in "fiu":
                raise self._unusable(f"it does not say what its {name} is")
            # Rounding may differ between machines; data or a formula that changed moves far more.
            finite = np.abs(value)[np.isfinite(value)]
            noise = 1e-8 * np.max(finite, initial=0.0)
            same = before.shape == value.shape
            if not (same and np.allclose(before, value, rtol=1e-4, atol=noise, equal_nan=True)):
                raise self._other(_difference(name, before, value))

    def _require_writable(self) -> None:
        folder = self.path.absolute().parent
        given = f"checkpoint={os.fspath(self.path)!r}"
        if not folder.is_dir():
            raise ValueError(f"{given}: there is no directory {folder}. Create it first.")
        if self.path.is_dir():
            raise ValueError(f"{given} is a directory: give the path of a file in it.")
        try:
            self._temporary.touch()
            self._temporary.unlink()
        except OSError as error:
            raise ValueError(
                f"{given}: nothing can be written in {folder} ({error.strerror}). Give another "
                "path, or make it writable."
            ) from error

    def _sweep(self) -> None:
        """Delete what runs on this machine left behind that were killed while they wrote."""
        for path in self.path.absolute().parent.iterdir():
            name = path.name
            owner = name[len(self._prefix) : -len(".tmp")]
            ours = name.startswith(self._prefix) and name.endswith(".tmp") and owner.isdigit()
            if ours and not _alive(int(owner)):
                path.unlink(missing_ok=True)

    def _unusable(self, why: str) -> ValueError:
        return ValueError(
            f"checkpoint={os.fspath(self.path)!r} is no checkpoint of dargmin.bilevel that this "
            f"version can read ({why}). Delete it to start anew, or give another path."
        )

    def _other(self, why: str) -> ValueError:
        return ValueError(
            f"checkpoint={os.fspath(self.path)!r} belongs to a different problem: {why}. Give "
            "another path, or delete the file to start anew."
        )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _alike(leaf: Any, stored: np.ndarray) -> bool:
    kinds = {"f": "f", "i": "iu", "u": "iu", "b": "b", "c": "c"}
    return leaf.shape == stored.shape and stored.dtype.kind in kinds.get(leaf.dtype.kind, "")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _difference(name: str, before: np.ndarray, value: np.ndarray) -> str:
    if value.size <= 4 and before.shape == value.shape and name in ("theta0", "bounds"):
        return f"its {name} is {before.tolist()}, and here it is {value.tolist()}"
    return f"its {name} is a different one"
