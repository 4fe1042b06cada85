"""Settings of a broker in layers: what it was started with, and over that what AlterConfigs has set while it ran.

Always true:
- The more specific layer wins: one broker's own altered settings, those altered for all brokers, what it was started
  with (file, environment, command line), the default.
- What is altered is in the metadata log, so it survives restarts. Only settings that are `dynamic` are.
- Every value can be explained: `synonyms` has all layers that say something of it, as DescribeConfigs tells them (KIP-226).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from broker.config import SETTINGS, BrokerSettings, InvalidSettings

__all__ = ["ConfigSource", "SettingsLayers", "Synonym"]

log = logging.getLogger("tidelog.config")


class ConfigSource(enum.IntEnum):
    """Where a value comes from, as Kafka numbers it (KIP-226)."""

    TOPIC = 1
    DYNAMIC_BROKER = 2
    """Altered for one broker."""
    DYNAMIC_DEFAULT_BROKER = 3
    """Altered for all brokers."""
    STATIC_BROKER = 4
    DEFAULT = 5
    DYNAMIC_BROKER_LOGGER = 6


class Synonym(NamedTuple):
    """One layer's word on a value."""

    name: str
    value: str
    source: ConfigSource


@dataclass(frozen=True, kw_only=True)
class SettingsLayers:
    """All layers of one broker. Frozen: a change makes new ones."""

    given: BrokerSettings
    """What it was started with."""
    cluster: Mapping[str, str]
    """Altered for all brokers."""
    own: Mapping[str, str]
    """Altered for this one."""

    @cached_property
    def current(self) -> BrokerSettings:
        """What holds now.

        Alterations were checked when they were made; one that this broker cannot follow (another version checked it, or it
        does not go with what this broker was started with) is left out, loudly: better than a broker that does not start.
        """
        settings = self.given
        for layer in (self.cluster, self.own):
            for name, text in sorted(layer.items()):
                try:
                    settings = settings.with_dynamic({name: text})
                except InvalidSettings as error:
                    log.error("altered setting left out: %(error)s", {"error": error})
        return settings

    def synonyms(self, name: str) -> list[Synonym]:
        """What the layers say of a setting, the one that holds first, the default last."""
        setting = SETTINGS[name]
        found = [
            Synonym(name, layer[name], source)
            for layer, source in (
                (self.own, ConfigSource.DYNAMIC_BROKER),
                (self.cluster, ConfigSource.DYNAMIC_DEFAULT_BROKER),
            )
            if name in layer
        ]
        given = getattr(self.given, name.replace(".", "_"))
        if given != setting.default:
            found.append(Synonym(name, setting.text(given), ConfigSource.STATIC_BROKER))
        found.append(Synonym(name, setting.text(setting.default), ConfigSource.DEFAULT))
        return found
