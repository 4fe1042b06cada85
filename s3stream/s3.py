"""The object store on S3 and what speaks its language, by aiobotocore.

Always true:
- Retries are ours, with jitter, within one deadline; botocore's are off. What moves of a body puts the end of its attempt off, also
  past that (`s3_progress`). At the deadline the caller sees `Unavailable`:
  a write may have happened. A conditional write that is tried again after a lost reply may meet its own first attempt
  and be refused; callers compare nonces (cas.py).
- Bodies are signed as UNSIGNED-PAYLOAD; instead of a SHA-256 of every byte, a CRC32C goes with the upload where the
  caller knows it, and S3 refuses a body that does not match.
- A stream that breaks is begun again where it broke off, and holds no request slot while its reader is busy.
- The caller's memory may be reused as soon as a call has ended, also when it was cancelled or timed out (`s3_body`).
- Credentials that are refused are looked for anew; once something succeeded, they are waited for until the deadline.
- A refusal after an attempt whose outcome is open leaves it open: `Unavailable`.
- A missing bucket is a mistake of the operator, never "no such object".
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Final, TypeVar

import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from s3stream.bucket_rules import BucketRules, lifecycle_rule, lock_retention
from s3stream.config import ObjectStoreSettings
from s3stream.objectstore import (
    LEAST_COPY_BYTES,
    AccessDenied,
    Buffer,
    CopyUnconfirmed,
    CopyUnsupported,
    MultipartSummary,
    NotFound,
    ObjectStoreError,
    ObjectSummary,
    PreconditionFailed,
    StoredObject,
    StoredRange,
    Unavailable,
    WrittenObject,
    scatter,
    stream_by_ranges,
)
from s3stream.s3_body import Body, Pieces, read_body, send_body
from s3stream.s3_checksums import UploadedPart, crc_of, is_confirmed, written_crc
from s3stream.s3_credentials import ChainCredentials, new_session
from s3stream.s3_errors import CredentialsRefused, RangeNotSatisfiable, TryAgain, failure, refusal
from s3stream.s3_progress import putting_off
from s3stream.s3_ranges import RangeLane, receiving_into, streamed
from s3stream.s3_streams import BodyStream

__all__ = ["S3ObjectStore"]

_T = TypeVar("_T")
_Client = Any
"""An aiobotocore client: made at run time from S3's model, so there is no static type."""

_log: Final = logging.getLogger("tidelog.object_store")

_CONNECT_TIMEOUT_S = 5
_SILENCE_S = 2.0
"""How long a request may be in trouble before the log tells: a start against a wrong endpoint should not look like a hang."""
_LEAST_ATTEMPT = 0.1
"""The part of the request timeout that must be left for another attempt: one cut off by the deadline would end the
call as a timeout, and hide why those before it failed."""
_DELETE_BATCH = 1000
"""S3's limit."""
_NO_COPIES = frozenset({"NotImplemented", "MethodNotAllowed", "InvalidRequest", "InvalidArgument"})
"""Answers to UploadPartCopy by stores that do not have it, or not between such objects."""
_NO_CHECKED_COPIES = frozenset({"InvalidRequest", "InvalidArgument"})
"""Answers by stores that have it, and make no CRC of the copy for an upload whose parts are all to have one."""
_NONCE = "tidelog-upload"
"""Metadata of an object that came in parts."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")


class S3ObjectStore:
    """An `ObjectStore` on one bucket."""

    def __init__(
        self,
        bucket: str,
        *,
        rng: random.Random,
        settings: ObjectStoreSettings | None = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        path_style: bool = False,
        send_checksums: bool = True,
        ca_file: str | None = None,
        encryption: Mapping[str, str | bool] | None = None,
        profile: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        """Describe the store; connections are made on first use.

        Args:
            endpoint_url: of a store that is not AWS's.
            path_style: put the bucket in the path, not the host name; many other stores want it.
            send_checksums: send CRC32C with uploads; off for stores that refuse the header.
            ca_file: certificates (PEM) to trust instead of the usual ones.
            encryption: at rest, by the store: S3's parameters of PutObject, sent with all that is written.
            profile: of AWS's shared files; by default AWS_PROFILE, or `default`.
            access_key_id, secret_access_key: by default the AWS chain, see `s3_credentials`.
        """
        self._bucket = bucket
        self._rng = rng
        self._settings = settings or ObjectStoreSettings()
        self._endpoint_url = endpoint_url
        self._send_checksums = send_checksums
        self._ca_file = ca_file
        self._encryption = dict(encryption or {})
        self._new_session = partial(new_session, profile)
        self._keys = {"aws_access_key_id": access_key_id, "aws_secret_access_key": secret_access_key}
        self._credentials = ChainCredentials(self._new_session)
        self._config = AioConfig(
            region_name=region,
            signature_version="s3v4",
            s3={"addressing_style": "path" if path_style else "virtual", "payload_signing_enabled": False},
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=self._settings.max_connections,
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=self._settings.request_timeout_ms / 1000,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            parameter_validation=False,
            user_agent="tidelog",  # botocore's own is put together anew for each request, for a tenth of its CPU
        )
        self._exit_stack = AsyncExitStack()
        self._client: _Client = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(self._settings.max_connections)
        self._closed = False
        self._confirms_copies = True
        """Until the store leaves the CRC of a copied part out."""
        self._answered = False
        """Something succeeded: from then on a refusal of credentials is one that may pass."""
        self._complained = False
        self.retries = 0
        """Attempts that had to be repeated."""

    @property
    def uri(self) -> str:
        """What the operator configured, without secrets."""
        return f"s3://{self._bucket}" + (f"?endpoint={self._endpoint_url}" if self._endpoint_url else "")

    async def put(self, key: str, parts: Sequence[Buffer], *, crc32c: int | None = None) -> str:
        """See ObjectStore."""
        return (await self._put(key, parts, self._known_checksum(crc32c))).etag

    async def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> str:
        """See ObjectStore."""
        return (await self._put(key, parts, {"IfNoneMatch": "*", **self._checksum(parts)})).etag

    async def put_if_match(self, key: str, parts: Sequence[Buffer], etag: str) -> str:
        """See ObjectStore."""
        try:
            return (await self._put(key, parts, {"IfMatch": etag, **self._checksum(parts)})).etag
        except NotFound as error:  # S3's answer where there is no object
            raise PreconditionFailed(str(error)) from error

    async def get(self, key: str) -> StoredObject:
        """See ObjectStore."""

        async def read(client: _Client) -> StoredObject:
            response = await client.get_object(Bucket=self._bucket, Key=key)
            return StoredObject(data=bytes(await read_body(response)), etag=response["ETag"])

        return await self._request(f"get {key}", read)

    async def get_range(self, key: str, start: int, end: int) -> bytes | bytearray:
        """See ObjectStore."""
        if not 0 <= start <= end:
            raise ValueError(f"no byte range: {start} to {end}")
        if start == end:  # HTTP cannot ask for nothing
            await self._request(f"head {key}", lambda client: client.head_object(Bucket=self._bucket, Key=key))
            return b""
        try:
            return (await self._get_range(key, f"bytes={start}-{end - 1}"))[0]
        except RangeNotSatisfiable:
            return b""

    async def get_range_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """See ObjectStore."""
        size = sum(map(len, parts))
        if not size:
            return 0
        with receiving_into(parts) as into:  # each attempt begins at the start of them
            data = await self.get_range(key, start, start + size)
        return scatter(data, parts) if into.size is None else into.size

    async def get_stream(self, key: str, start: int, end: int, *, buffer_bytes: int) -> AsyncGenerator[Buffer, None]:
        """See ObjectStore. Where the lane of range reads does not carry it, it is read range by range."""
        if not 0 <= start <= end:
            raise ValueError(f"no byte range: {start} to {end}")
        loop = asyncio.get_running_loop()
        settings = self._settings
        last_progress = loop.time()
        delay_s = settings.retry_first_delay_ms / 1000
        went_aside = False
        while start < end:
            try:
                stream = await self._begin_stream(key, start, end, buffer_bytes)
            except RangeNotSatisfiable:
                return
            if stream is None and not went_aside:
                went_aside = True  # an error, perhaps, that has passed
                continue
            if stream is None:
                async with aclosing(stream_by_ranges(self, key, start, end, buffer_bytes=buffer_bytes)) as pieces:
                    async for data in pieces:
                        yield data
                return
            try:
                while piece := await _within(settings.request_timeout_ms, stream.next()):
                    start += len(piece)
                    yield piece
                    last_progress, delay_s = loop.time(), settings.retry_first_delay_ms / 1000
                    went_aside = False
                return  # also where the object is shorter
            except (BotoCoreError, TimeoutError) as error:
                reason = _meaning(f"stream {key} from {start} on", error)
            finally:
                stream.close()
            if loop.time() - last_progress >= settings.deadline_ms / 1000:
                raise Unavailable(f"{reason} (given up after {settings.deadline_ms} ms)") from reason
            self.retries += 1
            await asyncio.sleep(delay_s * (0.5 + self._rng.random()))
            delay_s = min(2 * delay_s, settings.retry_max_delay_ms / 1000)

    async def _begin_stream(self, key: str, start: int, end: int, buffer_bytes: int) -> BodyStream | None:
        """The head of the answer is here; None: its body came another way, and was thrown away."""

        async def begin(client: _Client) -> BodyStream | None:
            with streamed(buffer_bytes) as wanted:
                response = await client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            if wanted.stream is None:
                response["Body"].close()
            return wanted.stream

        return await self._request(f"stream {key} from {start} on", begin)

    async def get_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See ObjectStore."""
        if size <= 0:
            raise ValueError(f"no size for a tail: {size}")
        try:
            tail, content_range = await self._get_range(key, f"bytes=-{size}")
        except RangeNotSatisfiable:
            return b"", 0
        data = bytes(tail)
        match = _CONTENT_RANGE.match(content_range)
        # A store may answer a tail that is longer than the object with all of it, as if no range had been asked for.
        return data, int(match[3]) if match else len(data)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectSummary]:
        """See ObjectStore."""
        page: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
        while True:
            arguments = {"Bucket": self._bucket, "Prefix": prefix, **page}
            response = await self._request(f"list {prefix}", lambda client: client.list_objects_v2(**arguments))  # noqa: B023
            for found in response.get("Contents", ()):
                modified_ms = int(found["LastModified"].timestamp() * 1000)
                yield ObjectSummary(key=found["Key"], size_bytes=found["Size"], last_modified_ms=modified_ms)
            if not response["IsTruncated"]:
                return
            page = {"ContinuationToken": response["NextContinuationToken"]}

    async def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        for begin in range(0, len(keys), _DELETE_BATCH):
            objects = [{"Key": key} for key in keys[begin : begin + _DELETE_BATCH]]

            async def delete(client: _Client, objects: list[dict[str, str]] = objects) -> None:
                response = await client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
                for failed in response.get("Errors", ()):
                    message = f"delete {failed['Key']}: {failed['Code']} {failed.get('Message', '')}"
                    if failed["Code"] == "AccessDenied":
                        raise AccessDenied(message)
                    raise TryAgain(message)

            await self._request(f"delete {len(objects)} objects", delete)

    async def put_multipart(self, key: str, parts: AsyncIterator[Buffer]) -> WrittenObject:
        """See ObjectStore. What fits in one part is put at once."""
        pieces = Pieces(self._settings.multipart_part_size_bytes)
        nonce = f"{self._rng.getrandbits(64):016x}"
        upload_id = ""
        uploaded: list[UploadedPart] = []
        try:
            async for part in parts:
                for full in pieces.add(part):
                    upload_id = upload_id or await self._create_multipart(key, nonce)
                    uploaded.append(await self._upload_part(key, upload_id, len(uploaded) + 1, full))
            last = pieces.rest()
            if not upload_id:
                return await self._put(key, last, self._checksum(last))
            if last:
                uploaded.append(await self._upload_part(key, upload_id, len(uploaded) + 1, last))
            return await self._complete_multipart(key, upload_id, uploaded, nonce)
        except BaseException:
            if upload_id:
                await self._abort_multipart(key, upload_id)
            raise

    async def put_composed(self, key: str, parts: AsyncIterator[Buffer | StoredRange]) -> WrittenObject:
        """See ObjectStore."""
        pieces = Pieces(self._settings.multipart_part_size_bytes, kept_bytes=LEAST_COPY_BYTES)
        nonce = f"{self._rng.getrandbits(64):016x}"
        # A store that computes no CRC of a copy takes no upload whose parts are all to have one.
        checked = self._send_checksums and self._confirms_copies
        upload_id = await self._create_multipart(key, nonce, checked=checked)
        uploaded: list[UploadedPart] = []

        async def upload(piece: Sequence[Buffer]) -> None:
            if piece:
                uploaded.append(await self._upload_part(key, upload_id, len(uploaded) + 1, piece, checked=checked))

        try:
            async for part in parts:
                if isinstance(part, StoredRange):
                    await upload(pieces.rest())
                    uploaded.append(await self._copy_part(key, upload_id, len(uploaded) + 1, part, checked=checked))
                else:
                    for full in pieces.add(part):
                        await upload(full)
            await upload(pieces.rest())
            return await self._complete_multipart(key, upload_id, uploaded, nonce)
        except BaseException:
            await self._abort_multipart(key, upload_id)
            raise

    async def abort_stale_multiparts(self, prefix: str, older_than_ms: int) -> int:
        """See ObjectStore."""
        aborted = 0
        async for upload in self._list_uploads(prefix):
            if _begun_ms(upload) < older_than_ms:
                with suppress(NotFound):  # it has come to an end meanwhile
                    await self._abort(upload["Key"], upload["UploadId"])
                    aborted += 1
        return aborted

    async def list_multiparts(self, prefix: str) -> AsyncIterator[MultipartSummary]:
        """See ObjectStore."""
        async for upload in self._list_uploads(prefix):
            yield MultipartSummary(key=upload["Key"], begun_ms=_begun_ms(upload))

    async def _list_uploads(self, prefix: str) -> AsyncIterator[dict[str, Any]]:
        # Of the whole bucket: asked for a prefix, MinIO tells only of an object that has exactly this key.
        page: dict[str, Any] = {}
        while True:
            arguments = {"Bucket": self._bucket, **page}
            response = await self._request(
                f"list uploads {prefix}",
                lambda client: client.list_multipart_uploads(**arguments),  # noqa: B023
            )
            for upload in response.get("Uploads", ()):
                if upload["Key"].startswith(prefix):
                    yield upload
            if not response.get("IsTruncated"):
                return
            page = {"KeyMarker": response["NextKeyMarker"], "UploadIdMarker": response["NextUploadIdMarker"]}

    async def read_rules(self) -> BucketRules:
        """See RuledBucket."""
        unknown: list[str] = []

        async def ask(what: str, call: Callable[[_Client], Awaitable[Mapping[str, Any]]]) -> Mapping[str, Any]:
            try:
                return await self._request(f"read {what}", call)
            except NotFound:  # S3's way to say that there are none
                return {}
            except Unavailable:
                raise
            except ObjectStoreError as error:  # not allowed, or not known to this store
                unknown.append(str(error))
                return {}

        bucket = self._bucket
        versioning = await ask("versioning", lambda client: client.get_bucket_versioning(Bucket=bucket))
        lifecycle = await ask(
            "lifecycle rules", lambda client: client.get_bucket_lifecycle_configuration(Bucket=bucket)
        )
        lock = await ask("object lock", lambda client: client.get_object_lock_configuration(Bucket=bucket))
        return BucketRules(
            versioning=str(versioning.get("Status", "")),
            lifecycle=tuple(map(lifecycle_rule, lifecycle.get("Rules", ()))),
            lock=lock_retention(lock.get("ObjectLockConfiguration", {})),
            unknown=tuple(unknown),
        )

    async def now_ms(self) -> int:
        """See ObjectStore. The `Date` header has whole seconds."""
        response = await self._request("head bucket", lambda client: client.head_bucket(Bucket=self._bucket))
        date = parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"])
        return int(date.timestamp() * 1000)

    async def close(self) -> None:
        """See ObjectStore."""
        self._closed = True
        async with self._opening:
            await self._exit_stack.aclose()
            self._client = None

    def _checksum(self, parts: Sequence[Buffer]) -> dict[str, Any]:
        return self._known_checksum(crc_of(parts)) if self._send_checksums else {}

    def _known_checksum(self, crc32c: int | None) -> dict[str, Any]:
        return {"ChecksumCRC32C": written_crc(crc32c)} if crc32c is not None and self._send_checksums else {}

    async def _put(self, key: str, parts: Sequence[Buffer], extra: dict[str, Any]) -> WrittenObject:
        async def put(client: _Client) -> WrittenObject:
            response = await client.put_object(
                Bucket=self._bucket, Key=key, Body=Body(parts), **self._encryption, **extra
            )
            told, sent = response.get("ChecksumCRC32C"), extra.get("ChecksumCRC32C")
            return WrittenObject(etag=str(response["ETag"]), is_confirmed=told is not None and told == sent)

        return await self._request(f"put {key}", put)

    async def _get_range(self, key: str, byte_range: str) -> tuple[bytes | bytearray, str]:
        async def read(client: _Client) -> tuple[bytes | bytearray, str]:
            response = await client.get_object(Bucket=self._bucket, Key=key, Range=byte_range)
            return await read_body(response), response.get("ContentRange", "")

        return await self._request(f"get {byte_range} of {key}", read)

    async def _create_multipart(self, key: str, nonce: str, *, checked: bool = True) -> str:
        """Begin an upload. The nonce will be the object's, and tells whether the upload was completed.

        Args:
            checked: the store is to have a CRC of each part.
        """
        checksums = {"ChecksumAlgorithm": "CRC32C"} if checked and self._send_checksums else {}
        extra = {**self._encryption, **checksums}
        response = await self._request(
            f"begin multipart {key}",
            lambda client: client.create_multipart_upload(
                Bucket=self._bucket, Key=key, Metadata={_NONCE: nonce}, **extra
            ),
        )
        return str(response["UploadId"])

    async def _upload_part(
        self, key: str, upload_id: str, number: int, parts: Sequence[Buffer], *, checked: bool = True
    ) -> UploadedPart:
        extra = self._checksum(parts) if checked else {}

        async def upload(client: _Client) -> UploadedPart:
            response = await client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=Body(parts), **extra
            )
            told, sent = response.get("ChecksumCRC32C"), extra.get("ChecksumCRC32C")
            return UploadedPart(
                {"PartNumber": number, "ETag": response["ETag"], **extra},
                size_bytes=sum(map(len, parts)),
                is_confirmed=told is not None and told == sent,
            )

        return await self._request(f"put part {number} of {key}", upload)

    async def _copy_part(
        self, key: str, upload_id: str, number: int, wanted: StoredRange, *, checked: bool
    ) -> UploadedPart:
        what = f"copy bytes {wanted.start} to {wanted.end} of {wanted.key} into {key}"
        if wanted.crc32c is not None and not checked:
            raise CopyUnconfirmed(f"{what}: the store does not tell CRCs of copies")

        async def copy(client: _Client) -> dict[str, Any]:
            try:
                response = await client.upload_part_copy(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    CopySource={"Bucket": self._bucket, "Key": wanted.key},
                    CopySourceRange=f"bytes={wanted.start}-{wanted.end - 1}",
                )
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if checked and code in _NO_CHECKED_COPIES:  # MinIO
                    self._confirms_copies = False
                    raise CopyUnconfirmed(f"{what}: {error}") from error
                if code in _NO_COPIES:
                    raise CopyUnsupported(f"{what}: {error}") from error
                raise
            found: dict[str, Any] = response["CopyPartResult"]
            return found

        found = await self._request(what, copy)
        named = {"PartNumber": number, "ETag": found["ETag"]}
        told = found.get("ChecksumCRC32C")
        if wanted.crc32c is not None and told != written_crc(wanted.crc32c):
            self._confirms_copies = self._confirms_copies and told is not None
            raise CopyUnconfirmed(f"{what}: the store tells the CRC {told}, not {written_crc(wanted.crc32c)}")
        return UploadedPart(
            named if told is None else {**named, "ChecksumCRC32C": told},
            size_bytes=len(wanted),
            is_confirmed=wanted.crc32c is not None,
        )

    async def _complete_multipart(
        self, key: str, upload_id: str, uploaded: Sequence[UploadedPart], nonce: str
    ) -> WrittenObject:
        try:
            response = await self._request(
                f"complete multipart {key}",
                lambda client: client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": [part.named for part in uploaded]},
                ),
            )
        except NotFound as error:
            # The upload is gone: ended by an attempt whose reply was lost, or by somebody else. The object tells.
            etag = await self._etag_of_nonce(key, nonce)
            if etag is None:
                raise Unavailable(f"{key}: its upload is gone, and was not completed: begin it again") from error
            return WrittenObject(etag=etag, is_confirmed=False)
        return WrittenObject(
            etag=str(response["ETag"]), is_confirmed=is_confirmed(response.get("ChecksumCRC32C"), uploaded)
        )

    async def _etag_of_nonce(self, key: str, nonce: str) -> str | None:
        try:
            found = await self._request(f"head {key}", lambda client: client.head_object(Bucket=self._bucket, Key=key))
        except NotFound:
            return None
        return str(found["ETag"]) if found.get("Metadata", {}).get(_NONCE) == nonce else None

    async def _abort_multipart(self, key: str, upload_id: str) -> None:
        """Abort an upload; one that is gone, or cannot be reached, is left to `abort_stale_multiparts`."""
        with suppress(ObjectStoreError):
            await asyncio.shield(self._abort(key, upload_id))

    async def _abort(self, key: str, upload_id: str) -> None:
        await self._request(
            f"abort multipart {key}",
            lambda client: client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id),
        )

    async def _request(self, what: str, call: Callable[[_Client], Awaitable[_T]]) -> _T:
        """Call until it succeeds, is refused, or the deadline passes."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + settings.deadline_ms / 1000
        delay_s = settings.retry_first_delay_ms / 1000
        earlier: ObjectStoreError | None = None
        """Why an attempt before this one failed in a way that leaves its outcome open."""
        async with self._slots:
            while True:
                generation = self._credentials.generation
                try:
                    client = self._client or await self._open()
                    timeout_s = settings.request_timeout_ms / 1000
                    async with asyncio.timeout_at(min(deadline, loop.time() + timeout_s)) as timeout:
                        with putting_off(timeout, timeout_s):
                            result = await call(client)
                except Exception as error:
                    reason = _meaning(what, error)
                else:
                    self._note_answer()
                    return result
                if isinstance(reason, CredentialsRefused):
                    if await self._renew(generation, deadline):
                        continue
                    if not self._answered:
                        raise AccessDenied(str(reason), is_advised=True) from reason
                elif isinstance(reason, TryAgain):
                    earlier = reason
                elif earlier is not None and type(reason) in (AccessDenied, ObjectStoreError):
                    raise Unavailable(f"{reason} (after an attempt that may have succeeded: {earlier})") from reason
                else:
                    raise reason
                self._note_trouble(reason, loop.time() - began)
                pause_s = delay_s * (0.5 + self._rng.random())
                if loop.time() + pause_s + settings.request_timeout_ms / 1000 * _LEAST_ATTEMPT >= deadline:
                    if isinstance(reason, CredentialsRefused) and earlier is None:
                        raise AccessDenied(str(reason), is_advised=True) from reason
                    raise Unavailable(f"{reason} (given up after {settings.deadline_ms} ms)") from reason
                self.retries += 1
                await asyncio.sleep(pause_s)
                delay_s = min(2 * delay_s, settings.retry_max_delay_ms / 1000)

    async def _renew(self, generation: int, deadline: float) -> bool:
        """Look for newer credentials; what hinders that is no news: the next attempt finds it, too."""
        if any(self._keys.values()):
            return False
        try:
            async with asyncio.timeout_at(deadline):
                return await self._credentials.renew(generation)
        except (ObjectStoreError, BotoCoreError, ClientError, aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _note_trouble(self, reason: ObjectStoreError, lasted_s: float) -> None:
        if not self._complained and lasted_s >= min(_SILENCE_S, self._settings.deadline_ms / 2000):
            self._complained = True
            _log.warning("the object store does not answer: trying again (%(error)s)", {"error": reason})

    def _note_answer(self) -> None:
        self._answered = True
        if self._complained:
            self._complained = False
            _log.info("the object store answers again")

    async def _open(self) -> _Client:
        async with self._opening:
            if self._closed:
                raise Unavailable(f"{self.uri} is closed")
            if self._client is None:
                session = self._new_session()
                session.register_component("credential_provider", self._credentials)
                client = await self._exit_stack.enter_async_context(
                    session.create_client(
                        "s3", endpoint_url=self._endpoint_url, verify=self._ca_file, config=self._config, **self._keys
                    )
                )
                client.meta.events.register("before-send.s3", send_body)
                lane = RangeLane(
                    verify=self._ca_file or session.get_config_variable("ca_bundle") or True,
                    connect_timeout_s=_CONNECT_TIMEOUT_S,
                )
                self._exit_stack.callback(lane.close)
                client.meta.events.register("before-send.s3.GetObject", lane.answer)
                self._client = client
            return self._client


def _meaning(what: str, error: Exception) -> ObjectStoreError:
    """What an attempt's end means; what is no matter of stores is raised as it is."""
    if isinstance(error, ClientError):
        meaning = refusal(what, error)
    elif isinstance(error, CredentialsRefused):
        meaning = CredentialsRefused(f"{what}: {error}")
    elif isinstance(error, ObjectStoreError):
        return error
    elif isinstance(error, BotoCoreError | aiohttp.ClientError | OSError | TimeoutError):
        meaning = failure(what, error)
    else:
        raise error
    meaning.__cause__ = error
    return meaning


def _begun_ms(upload: dict[str, Any]) -> int:
    return int(upload["Initiated"].timestamp() * 1000)


async def _within(timeout_ms: int, work: Awaitable[_T]) -> _T:
    async with asyncio.timeout(timeout_ms / 1000):
        return await work
