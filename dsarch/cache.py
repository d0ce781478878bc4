"""What a layer remembers of the tokens that it has seen."""

from typing import Any

import torch
from torch import Tensor


class Cache:
    """One layer's memory: named streams that grow along the time axis.

    A stream has shape ``[b, s, ...]``; all streams have the same length.
    Room is doubled when it runs out, so appending a token writes one row
    and copies the past only every now and then. While gradients are
    recorded, streams are copied instead, because autograd forbids writing
    into what it has saved.
    """

    def __init__(self, reserve: int = 0) -> None:
        if reserve < 0:
            raise ValueError(f"cannot reserve {reserve} positions")
        self.reserve = reserve
        self._room: dict[str, Tensor] = {}
        self._length = 0

    def extend(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Append positions to every stream; return the streams in full.

        Raises ``ValueError`` and changes nothing if names, batch, widths,
        dtype or device differ from what is stored.
        """
        _check_alike(new)
        _check_fits(self._room, new)
        start, room = self._length, {}
        end = start + next(iter(new.values())).size(1)
        for name, x in new.items():
            held = self._room.get(name, x[:, :0])
            longest = max(end, 2 * held.size(1), self.reserve)
            room[name] = _grown(held, x, start, longest)
        for name, x in new.items():
            if not room[name].requires_grad:
                room[name][:, start:end] = x
        self._room, self._length = room, end
        return tuple(self[name] for name in new)

    def crop(self, length: int) -> None:
        """Forget the positions from ``length`` on, as a rejected draft must."""
        if not 0 <= length <= self._length:
            raise ValueError(
                f"cannot crop to {length}: the cache holds {self._length}"
            )
        self._length = length

    def __getitem__(self, name: str) -> Tensor:
        return self._room[name][:, : self._length]

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the positions held, without the room kept in reserve."""
        return sum(self[name].nbytes for name in self._room)

    @property
    def reserved_nbytes(self) -> int:
        """Bytes allocated, room for tokens to come included."""
        return sum(room.nbytes for room in self._room.values())


def _grown(room: Tensor, x: Tensor, start: int, length: int) -> Tensor:
    """Room for ``length`` positions that begins with the past."""
    past = room[:, :start]
    if x.requires_grad or past.requires_grad:
        return torch.cat([past, x], 1)
    if room.size(1) >= start + x.size(1):
        return room
    grown = x.new_empty(x.size(0), length, *x.shape[2:])
    grown[:, :start] = past
    return grown


def _check_fits(room: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    if room and new.keys() != room.keys():
        raise ValueError(f"the cache holds {sorted(room)}, not {sorted(new)}")
    for name, held in room.items():
        if _kind(new[name]) != _kind(held):
            found, stored = (
                "batch {}, widths {}, {} on {}".format(*_kind(x))
                for x in (new[name], held)
            )
            raise ValueError(
                f"stream {name!r} holds {stored}, cannot append {found}"
            )


def length(cache: Cache | None) -> int:
    """How many positions are behind: none without a cache."""
    return 0 if cache is None else len(cache)


def _kind(x: Tensor) -> tuple[Any, ...]:
    """What must agree between two pieces of one stream."""
    batch, _, *widths = x.shape
    return batch, widths, x.dtype, x.device


def _check_alike(new: dict[str, Tensor]) -> None:
    if not new:
        raise ValueError("nothing to append: no stream was named")
    for name, x in new.items():
        if x.ndim < 2:
            raise ValueError(
                f"stream {name!r} has shape {tuple(x.shape)}, needs [b, t, ...]"
            )
    if len({x.shape[:2] for x in new.values()}) > 1:
        sizes = {name: tuple(x.shape[:2]) for name, x in new.items()}
        raise ValueError(f"streams differ in batch or length: {sizes}")
