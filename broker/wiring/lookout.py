"""Who looks at the bucket for the lease while the event loop is late."""

from __future__ import annotations

import random
from dataclasses import replace

from broker.config import BrokerSettings
from broker.uris import absolute_uri
from broker.wiring.outside import Opened, metered
from broker.wiring.parts import Registered
from broker.wiring.surroundings import Surroundings
from controller.config import ControllerSettings
from controller.entry import Entry
from controller.log import MetadataLog
from controller.lookout import Lookout
from s3stream.config import ObjectStoreSettings
from s3stream.metered import Purpose, Usage
from s3stream.objectstore import ObjectStore
from s3stream.open import open_object_store

__all__ = ["LogReader", "new_lookout"]


class LogReader:
    """Reads the metadata log with a client of its own, on the event loop that it is made on; an EntryReader."""

    def __init__(
        self,
        uri: str,
        *,
        settings: ObjectStoreSettings,
        controller_settings: ControllerSettings,
        usage: Usage,
        rng: random.Random,
    ) -> None:
        """Describe the store; it is contacted when something is read."""
        settings = replace(settings, max_connections=1, local_threads=1)
        opened = open_object_store(uri, rng=rng, settings=settings, read_only=True)
        self._store: ObjectStore = metered(opened.store, usage, Purpose.LEASE, settings)
        self._log = MetadataLog(store=self._store, paths=opened.paths, settings=controller_settings, rng=rng)
        self._log.bears_outage = False

    async def read_entry(self, index: int) -> Entry | None:
        """An entry as it is in the bucket, in one request; None where there is none. Raises ObjectStoreError, ControllerError."""
        return await self._log.read_one(index)

    async def close(self) -> None:
        """Release connections."""
        await self._store.close()


def new_lookout(
    settings: BrokerSettings, around: Surroundings, opened: Opened, registered: Registered
) -> Lookout | None:
    """None where the node is alone and takes no lease, where it is not wanted, and where nobody else reaches the same store."""
    lease = registered.lease
    is_reached = around.wrap_store is None and not opened.store.uri.startswith("mem:")
    if lease is None or not around.has_lookout or not is_reached:
        return None
    rng = random.Random(around.rng.getrandbits(64))  # the thread's own
    opened.usage.of(Purpose.LEASE)  # from here on only its figures change, by the thread
    of_controller = opened.controller.settings
    return Lookout(
        lease,
        registered.metadata,
        lease_ms=of_controller.lease_ms,
        entry_min_age_ms=of_controller.entry_min_age_ms,
        open_reader=lambda: LogReader(
            absolute_uri(settings.object_store_uri),
            settings=opened.config.object_store,
            controller_settings=of_controller,
            usage=opened.usage,
            rng=rng,
        ),
        clock=around.boottime,
    )
