"""The identity of code that does not come with selgrad: a hash of source, closed-over values and data, so that changed code is a changed experiment.

Everything is hashed by value: functions with their defaults, closures and the module-level names that they read, classes by their source, arrays by their
content, dataclasses and containers by what they contain.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def source_hash(item: Any) -> str:
    """A hash of 16 hexadecimal digits that changes when the item's code or content changes."""
    digest = hashlib.sha256()
    for piece in _pieces(item, set()):
        digest.update(piece)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def own_hash() -> str:
    """A hash of 12 hexadecimal digits of selgrad's own source files, so that records say by which code they were made."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _is_library(item: Any) -> bool:
    """Whether an object comes from an installed package, whose version identifies it."""
    if getattr(item, "__module__", None) == "__main__":
        return False
    module = inspect.getmodule(item)
    file = getattr(module, "__file__", None) or ""
    return module is None or not file or "site-packages" in file or "dist-packages" in file or module.__name__.split(".")[0] in ("selgrad", "builtins")


def _text(item: Any) -> bytes:
    """The source, independent of surrounding indentation and comments; the byte code if there is no source."""
    try:
        return textwrap.dedent(inspect.getsource(item)).encode()
    except (OSError, TypeError):
        code = getattr(item, "__code__", None)
        return str(getattr(item, "__qualname__", "")).encode() if code is None else _byte_code(code)


def _byte_code(code: types.CodeType) -> bytes:
    constants = (_byte_code(constant) if isinstance(constant, types.CodeType) else repr(constant).encode() for constant in code.co_consts)
    return b"\0".join([code.co_code, repr(code.co_names).encode(), *constants])


def _pieces(item: Any, visited: set[int]) -> Iterator[bytes]:
    if isinstance(item, str | bytes | int | float | complex | bool | type(None)):
        yield repr(item).encode()
        return
    if id(item) in visited:
        return
    visited.add(id(item))
    if isinstance(item, functools.partial):
        for part in (item.func, item.args, item.keywords):
            yield from _pieces(part, visited)
    elif isinstance(item, types.FunctionType):
        yield from _function(item, visited)
    elif isinstance(item, types.MethodType):
        yield from _pieces(item.__func__, visited)
        yield from _pieces(item.__self__, visited)
    elif isinstance(item, type):
        yield f"{item.__module__}.{item.__qualname__}".encode() if _is_library(item) else _text(item)
        if not _is_library(item):
            for base in item.__bases__:
                yield from _pieces(base, visited)
            for member in vars(item).values():
                plain = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
                if isinstance(plain, types.FunctionType):
                    yield from _function(plain, visited)
    elif isinstance(item, types.ModuleType):
        yield item.__name__.encode()
    elif isinstance(item, Mapping):
        for key in sorted(item, key=repr):
            yield repr(key).encode()
            yield from _pieces(item[key], visited)
    elif isinstance(item, tuple | list | set | frozenset):
        for element in sorted(item, key=repr) if isinstance(item, set | frozenset) else item:
            yield from _pieces(element, visited)
    elif isinstance(item, np.ndarray) or (hasattr(item, "dtype") and hasattr(item, "shape")):
        array = _array(item)
        yield f"{array.dtype} {array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif any(base.__module__.startswith("flax.nnx") for base in type(item).__mro__):
        yield from _pieces(type(item), visited)
        yield from _pieces(_nnx_content(item), visited)
    else:
        yield from _pieces(type(item), visited)
        if dataclasses.is_dataclass(item):
            attributes: Mapping[str, Any] = {f.name: getattr(item, f.name) for f in dataclasses.fields(item) if f.name not in ("parent", "name")}
        else:
            attributes = {name: value for name, value in getattr(item, "__dict__", {}).items() if not name.startswith("_")}
        if not attributes and callable(getattr(item, "__wrapped__", None)):
            yield from _pieces(item.__wrapped__, visited)
        for name in sorted(attributes):
            yield name.encode()
            yield from _pieces(attributes[name], visited)


def _array(item: Any) -> npt.NDArray[Any]:
    """The content of an array; for a JAX key, its key data."""
    # A variable of a module holds its array under `value`.
    content = item if isinstance(item, np.ndarray) else getattr(item, "value", item)
    if str(item.dtype).startswith("key<"):
        import jax

        return np.asarray(jax.random.key_data(content))
    return np.asarray(content)


def _nnx_content(item: Any) -> dict[str, Any]:
    """The arrays of an NNX module, except keys, and its plain attributes; its bookkeeping differs between equal modules."""
    from flax import nnx

    plain = {name: value for name, value in vars(item).items() if isinstance(value, str | int | float | bool | types.FunctionType)}
    return {"plain": plain, "state": nnx.to_pure_dict(nnx.state(item, nnx.Not(nnx.RngState)))}


def _function(item: types.FunctionType, visited: set[int]) -> Iterator[bytes]:
    if _is_library(item):
        yield f"{item.__module__}.{item.__qualname__}".encode()
    else:
        yield _text(item)
    for part in (item.__defaults__, item.__kwdefaults__):
        yield from _pieces(part, visited)
    for cell in item.__closure__ or ():
        try:
            yield from _pieces(cell.cell_contents, visited)
        except ValueError:  # a name that is not bound yet
            continue
    if not _is_library(item):
        for name in item.__code__.co_names:
            # Helpers and constants of the same file.
            value = item.__globals__.get(name)
            if (isinstance(value, types.FunctionType | type) and not _is_library(value)) or isinstance(value, str | int | float | bool | tuple):
                yield from _pieces(value, visited)
