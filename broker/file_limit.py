"""How many files, sockets among them, this process may have open: a broker that runs out of them accepts nobody, and fails writes.

Always true: only the command line calls this. Whoever embeds a broker keeps the limits of the process to itself.
"""

from __future__ import annotations

import logging
import resource

__all__ = ["OTHER_FILES", "connections_that_fit"]

log = logging.getLogger("tidelog.server")

OTHER_FILES = 256
"""What is open besides connections of clients: the WAL, the object store's connections, listeners, pipes."""


def connections_that_fit(max_connections: int) -> int:
    """Raise the soft limit as far as it takes and may be; returns how many connections of `max_connections` it is enough for."""
    wanted = max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    fit = max(soft - OTHER_FILES, 1)
    log.warning(
        "too few open files for max.connections: %(max_connections)d connections need %(wanted)d open files, this process may have "
        "%(allowed)d, so %(accepted)d are accepted; raise the hard limit (ulimit -Hn, LimitNOFILE of systemd)",
        {"max_connections": max_connections, "wanted": wanted, "allowed": soft, "accepted": fit},
    )
    return fit
