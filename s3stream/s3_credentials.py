"""Credentials as AWS tools find them: environment, shared files and profiles, a process, container, instance, web identity, SSO.

Always true:
- The chain is botocore's, which renews by itself what tells when it expires (a container's, an instance's, a role's).
- What does not tell (a file that something else rewrites, a key that was exchanged) is read anew when the store
  refuses it, at most once in `RENEW_INTERVAL_S`.
- Nobody else sees them: no log line and no message has more than the provider's name.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiobotocore.session import AioSession
from botocore.exceptions import (
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)

from s3stream.s3_errors import CredentialsRefused

__all__ = ["ChainCredentials", "CredentialsMissing", "new_session"]

RENEW_INTERVAL_S = 1.0
"""Instances and containers limit how often they may be asked."""


class CredentialsMissing(CredentialsRefused):
    """The chain gives none, or they cannot be had now."""


class ChainCredentials:
    """What botocore's signer asks; it asks for each request."""

    def __init__(self, new_session: Callable[[], AioSession]) -> None:
        """Take how to begin anew: a session keeps what it found for good."""
        self._new_session = new_session
        self._found: Any = None
        self._frozen: Any = None
        self._lock = asyncio.Lock()
        self._renewed_at = float("-inf")
        self.generation = 0
        """Grows whenever others were found; tells what a request was signed with."""

    async def load_credentials(self) -> ChainCredentials:
        """As botocore's chain of providers is asked."""
        return self

    async def get_frozen_credentials(self) -> Any:
        """As botocore's credentials are asked. Raises CredentialsMissing; BotoCoreError or ClientError where it may pass."""
        if self._found is None:
            async with self._lock:
                if self._found is None:
                    self._found, self._frozen = await self._begin()
        self._frozen = await _freeze(self._found)
        return self._frozen

    def get_deferred_property(self, name: str) -> Callable[[], Any]:
        """As botocore's credentials are asked for what endpoints may depend on; S3's do not."""
        return lambda: getattr(self._frozen, name, None)

    def get_account_id(self) -> Any:
        """Likewise."""
        return self.get_deferred_property("account_id")()

    async def renew(self, generation: int) -> bool:
        """Ask the chain anew, unless somebody did; True where there are others than those of `generation`.

        Raises as above: those that were there stay.
        """
        async with self._lock:
            if self.generation != generation:
                return True
            now = asyncio.get_running_loop().time()
            if now < self._renewed_at + RENEW_INTERVAL_S:
                return False
            self._renewed_at = now
            found, frozen = await self._begin()
            if frozen == self._frozen:
                return False
            self._found, self._frozen = found, frozen
            self.generation += 1
            return True

    async def _begin(self) -> tuple[Any, Any]:
        session = self._new_session()
        with _translated():
            found = await session.get_credentials()
            if found is None:
                raise NoCredentialsError
        return found, await _freeze(found)


async def _freeze(credentials: Any) -> Any:
    with _translated():
        return await credentials.get_frozen_credentials()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise CredentialsMissing(
            f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another source that AWS tools know"
        ) from error
    except CredentialRetrievalError as error:
        raise CredentialsMissing(f"credentials cannot be had: {error}") from error
    except (RuntimeError, ValueError, KeyError, FileNotFoundError, PermissionError) as error:
        # RuntimeError: what came anew has expired already. The others: a process or a file is not there, or not to be understood.
        raise CredentialsMissing(f"credentials cannot be had: {type(error).__name__}: {error}") from error


def new_session(profile: str | None) -> AioSession:
    """A session of botocore. All share one loader: it reads S3's model, megabytes of JSON, once."""
    session = AioSession(profile=profile)
    session.register_component("data_loader", _loader())
    return session


@functools.cache
def _loader() -> Any:
    return AioSession().get_component("data_loader")
