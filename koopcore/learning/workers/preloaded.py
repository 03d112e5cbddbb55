"""What the fork server imports once, before any worker is forked from it."""

import contextlib

import koopcore.backends.native_cpu
import koopcore.learning.workers.async_worker

with contextlib.suppress(ImportError):  # without torch there are no ranks, only async workers
    import koopcore.learning.workers.ranks  # noqa: F401
