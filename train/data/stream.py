"""The order of examples, and their prefetch to the device.

The order is a pure function of the seed and the epoch. Epochs follow each other without
a gap: step t takes `batch_size` positions of the endless sequence of epochs, from
`t * batch_size` on. So all batches are full, and the step alone determines its
examples. Each epoch has every example exactly once, or every class equally often.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from train.data.examples import Examples

PREFETCH = 2


class Order:
    """The endless sequence of examples.

    Args:
      examples: the size of the data set.
      batch_size: the number of examples in a step, over all hosts.
      seed: the seed of the order within each epoch.
      classes: the class of each example, for classes that are equally often in an
        epoch; None for each example once. A class has a turn each time that all have
        had one, and its examples follow each other in random order.

    Example:
      >>> order = Order(examples=5, batch_size=3, seed=0)
      >>> seen = np.concatenate([order.indices(step) for step in range(5)])
      >>> sorted(seen[:5].tolist()), sorted(seen[5:10].tolist())
      ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
      >>> balanced = Order(6, 6, seed=0, classes=np.array([7, 7, 7, 7, 7, 9]))
      >>> (balanced.indices(0) == 5).sum().item()
      3
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        seed: int,
        classes: np.ndarray | None = None,
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self._of_class: list[np.ndarray] = []
        if classes is not None:
            self._of_class = [np.flatnonzero(classes == c) for c in np.unique(classes)]
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)

    @property
    def is_balanced(self) -> bool:
        """True if classes are equally often; a step may have an example repeatedly."""
        return bool(self._of_class)

    @property
    def steps_per_epoch(self) -> float:
        """The number of steps in an epoch; not always an integer."""
        return self.examples / self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """Returns the examples of a step, int32 `[batch_size]`."""
        return self._drawn(step)[0]

    def draws(self, step: int) -> np.ndarray:
        """Returns a number for each example of a step, int32 `[batch_size]`.

        An example has another number each time that it is drawn: the epoch, or, as a
        small class has its examples several times in one epoch, a larger number.
        """
        return self._drawn(step)[1]

    def _drawn(self, step: int) -> np.ndarray:
        """Returns `indices` and `draws` of a step, int32 `[2, batch_size]`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.examples)
        parts = [
            self._permutation(int(epoch))[:, places[epochs == epoch]]
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts, 1)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Returns the examples of an epoch and their draws, int32 `[2, examples]`."""
        rng = np.random.default_rng((self.seed, epoch))
        if not self._of_class:
            order = rng.permutation(self.examples)
            return np.stack([order, np.full_like(order, epoch)]).astype(np.int32)
        count = len(self._of_class)
        rounds = np.arange(-(-self.examples // count))
        turns = rng.permuted(np.tile(np.arange(count), (len(rounds), 1)), axis=1)
        drawn = [np.resize(rng.permutation(x), len(rounds)) for x in self._of_class]
        sizes = np.array([len(x) for x in self._of_class])
        order = np.stack(drawn)[turns, rounds[:, None]]
        draws = epoch * len(rounds) + rounds[:, None] // sizes[turns]
        both = np.stack([order.ravel(), draws.ravel()])
        return both[:, : self.examples].astype(np.int32)


def padded_order(examples: int, batch_size: int) -> np.ndarray:
    """Returns every example once, in order, int32 `[steps, batch_size]`, then -1.

    Example:
      >>> padded_order(5, 3).tolist()
      [[0, 1, 2], [3, 4, -1]]
    """
    steps = -(-examples // batch_size)
    order = np.full(steps * batch_size, -1, np.int32)
    order[:examples] = np.arange(examples)
    return order.reshape(steps, batch_size)


def items(
    indices: np.ndarray,
    fed: Examples | None,
    length: int,
    draws: np.ndarray | None = None,
    places: np.ndarray | None = None,
) -> dict[str, Any]:
    """Builds the input of several steps.

    Args:
      indices: `[steps, batch]`, the positions of examples; -1 for no example.
      fed: the data set, if it is fed from the host; None if it is on the device.
      length: the number of steps to pad to, so that every dispatch has one shape.
      draws: `[steps, batch]`, as of `Order.draws`; None for evaluation.
      places: `[steps, batch]`, the place of each example in its step over all hosts;
        None if a step has each example once.

    Returns:
      "index" `[length, batch]`, with places also "place", and for a fed data set the
      "images" and "labels".
    """
    index = _padded(indices, length)
    item = {"index": index}
    if places is not None:
        item["place"] = _padded(places, length)
    if fed is None:
        return item
    flat = None if draws is None else _padded(draws, length).ravel()
    images, labels = fed.batch(index.ravel(), flat)
    return item | {
        "images": images.reshape(*index.shape, *images.shape[1:]),
        "labels": labels.reshape(index.shape),
    }


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """Returns `[steps, batch]` as int32 `[length, batch]`, with -1 at the end."""
    padded = np.full((length, values.shape[1]), -1, np.int32)
    padded[: len(values)] = values
    return padded


class Prefetch:
    """Prepares the next items on a background thread, and measures the wait for them.

    Args:
      prepare: makes one item from a request; its exceptions reach the consumer.
      requests: the requests, in order.

    Attributes:
      waited: the seconds that the consumer has waited.

    Example:
      >>> list(Prefetch(lambda x: x * x, [1, 2, 3]))
      [(1, 1), (2, 4), (3, 9)]
    """

    def __init__(self, prepare: Callable[[Any], Any], requests: Iterable[Any]) -> None:
        self.waited = 0.0
        self._ready: queue.Queue = queue.Queue(PREFETCH)
        self._closed = threading.Event()
        arguments = (prepare, iter(requests))
        self._thread = threading.Thread(target=self._work, args=arguments, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        while True:
            start = time.perf_counter()
            kind, value = self._ready.get()
            self.waited += time.perf_counter() - start
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                continue

    def _work(self, prepare: Callable[[Any], Any], requests: Iterator[Any]) -> None:
        try:
            for request in requests:
                self._ready.put(("item", (request, prepare(request))))
                if self._closed.is_set():
                    return
            self._ready.put(("end", None))
        except Exception as error:  # raised again in the consumer
            self._ready.put(("error", error))
