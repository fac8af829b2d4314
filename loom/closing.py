"""What is being recorded is closed, however its command ends."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loom.errors import UserError


@contextmanager
def closed_properly(finish: Callable[[str, str], None], go_on: str = "") -> Iterator[None]:
    """Close what is recorded as KILLED or FAILED when its steps do not come to their end; SIGTERM is as Ctrl-C.

    Args:
        finish: Closes it; takes status and reason.
        go_on: Command that goes on with it, if there is one.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        finish("KILLED", "interrupted")
        raise KeyboardInterrupt(f"stopped; go on with: {go_on}" if go_on else "stopped") from None
    except BaseException as error:
        finish("FAILED", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
