"""Following a call from outside: how far it is, and a way to stop it within one step.

diffusers' `callback_on_step_end` knows the denoising alone. A FOCUS call also writes text and visual tokens, so user interfaces
(a canvas of nodes, a page in a browser) watch the pipeline instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Watcher = Callable[[int, int], None]


class FocusWatchMixin:
    """Mixed into a `DiffusionPipeline` before it: its progress bars are what is watched."""

    _watcher: Watcher | None = None

    @contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Within the `with` block, call `watcher(done, total)` before each pass of the language model or the UNet, and after each.

        What the watcher raises ends the call of the pipeline that is running and comes out of it; the pipeline is ready for
        the next one. One call at a time, as everywhere with pipelines: they are not for several threads.

        Args:
            watcher: gets the steps done and their number: visual tokens, then denoising steps, counted one after the other.
                Both are 0 while text is read or written, whose length nobody knows.

        Raises:
            RuntimeError: the pipeline is being watched already.
        """
        if self._watcher is not None:
            raise RuntimeError("This pipeline is being watched already. Wait for its call to end.")
        at = [0, 0]

        def follow(done: int, total: int) -> None:
            at[:] = done, total
            watcher(done, total)

        unet, language_model = getattr(self, "unet", None), getattr(self, "language_model", None)
        parts = [part for part in (unet, getattr(language_model, "model", None)) if part is not None]
        hooks = [part.register_forward_pre_hook(lambda *_: watcher(*at)) for part in parts]
        self._watcher = follow
        try:
            yield
        finally:
            self._watcher = None
            for hook in hooks:
                hook.remove()
            self.maybe_free_model_hooks()  # a call that was stopped did not come to it

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """diffusers' bar, which also tells the watcher."""
        bar = super().progress_bar(iterable, total)
        return bar if self._watcher is None or total is None else _WatchedBar(bar, total, self._watcher)


class _WatchedBar:
    """A tqdm bar of a known length. It counts for itself: a bar that is not shown does not."""

    def __init__(self, bar: Any, total: int, watcher: Watcher) -> None:
        self._bar, self._total, self._done, self._watcher = bar, total, 0, watcher
        watcher(0, total)

    def update(self, count: int = 1) -> None:
        self._bar.update(count)
        self._done += count
        self._watcher(self._done, self._total)

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> _WatchedBar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
