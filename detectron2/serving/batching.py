"""Put what many callers ask for into batches."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

__all__ = ["Batcher"]

Item = TypeVar("Item")
Output = TypeVar("Output")


class Batcher(Generic[Item, Output]):
    """Calls a function with the items of many callers at once, in a thread of its own.

    A batch begins with the first item that waits. It ends when it is full, or when `window` seconds have gone by. Items
    whose `Future` was cancelled before are left out. If the function fails for a batch, it is called again for each
    item alone, so that one bad item does not fail the others.

    Args:
        function: takes a list of items and returns as many outputs, in order.
        batch_size: the most items of a batch.
        window: seconds for which the first item waits for others.

    Raises:
        ValueError: `batch_size` is below 1, or `window` below 0.

    Example:
        >>> batcher = Batcher(lambda numbers: [2 * number for number in numbers], batch_size=4)
        >>> futures = [batcher.submit(number) for number in range(3)]
        >>> [future.result() for future in futures]
        [0, 2, 4]
        >>> batcher.close()
    """

    def __init__(self, function: Callable[[list[Item]], Sequence[Output]], *, batch_size: int, window: float = 0.0):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size!r}.")
        if not window >= 0:
            raise ValueError(f"window must be at least 0 seconds, got {window!r}.")
        self._function, self._batch_size, self._window = function, batch_size, window
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Output]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # no item comes behind the mark of the end
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether items are taken."""
        return not self._is_closed and self._thread.is_alive()

    def submit(self, item: Item) -> "Future[Output]":
        """Return the output of an item, once it is there.

        Args:
            item: goes into the next batch that has a place for it.

        Returns:
            A future, which raises what the function raises for this item alone.

        Raises:
            RuntimeError: the batcher is closed.
        """
        future: Future[Output] = Future()
        with self._lock:
            if not self.is_open:
                raise RuntimeError("The batcher is closed: it takes no more items.")
            self._waiting.put((item, future))
        return future

    def close(self) -> None:
        """Take no more items, finish those that wait, and end the thread."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_last = False
        while not is_last and (first := self._waiting.get()) is not None:
            batch = [first]
            until = time.monotonic() + self._window
            while len(batch) < self._batch_size and not is_last:
                try:
                    one_more = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if one_more is None:
                    is_last = True
                else:
                    batch.append(one_more)
            wanted = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if wanted:
                self._run(wanted)

    def _run(self, batch: list[tuple[Item, "Future[Output]"]]) -> None:
        try:
            outputs: list[Any] = list(self._function([item for item, _ in batch]))
            if len(outputs) != len(batch):
                raise RuntimeError(f"The function returned {len(outputs)} outputs for {len(batch)} items.")
        except Exception as error:
            if len(batch) > 1:
                for pair in batch:
                    self._run([pair])
            else:
                batch[0][1].set_exception(error)
            return
        for (_, future), output in zip(batch, outputs, strict=True):
            future.set_result(output)
