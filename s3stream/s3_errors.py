"""What an answer of S3, or none, means to us. Pure: an error of botocore or aiohttp in, one of ours out.

Always true: every message names the request, what the store said, and what to do. What may pass by itself is `TryAgain`; what
better credentials may cure is `CredentialsRefused`; neither leaves `S3ObjectStore`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from botocore.exceptions import (
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    InvalidConfigError,
    InvalidRegionError,
    NoRegionError,
    ParamValidationError,
    ProfileNotFound,
    SSLError,
    UnknownCredentialError,
)

from s3stream.objectstore import (
    AccessDenied,
    Archived,
    NotFound,
    ObjectStoreError,
    PreconditionFailed,
    WriteConflict,
)

__all__ = ["CredentialsRefused", "RangeNotSatisfiable", "TryAgain", "failure", "refusal"]

_PASSING = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException", "OperationAborted",
     "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded", "IncompleteBody", "BadDigest", "XAmzContentChecksumMismatch",
     "KMS.ThrottlingException"}
)  # fmt: skip
"""BadDigest, IncompleteBody and XAmzContentChecksumMismatch: the body was damaged on its way."""

_CREDENTIALS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)  # fmt: skip
"""Renewed or exchanged credentials help; a clock that is wrong has a code of its own."""

_OPERATORS_MISTAKES = (
    NoRegionError,
    InvalidRegionError,
    ProfileNotFound,
    ConfigNotFound,
    ConfigParseError,
    InvalidConfigError,
    ParamValidationError,
    UnknownCredentialError,
)
"""What botocore finds wrong before it sends anything."""

_ADVICE = {
    "NoSuchBucket": "create the bucket, or correct the URI",
    "InvalidBucketName": "correct the bucket's name in the URI",
    "InvalidAccessKeyId": "check the access key",
    "SignatureDoesNotMatch": "check the secret key",
    "AllAccessDisabled": "the bucket's account is closed or suspended",
    "KMS.DisabledException": "enable the KMS key that objects are encrypted with",
    "KMS.NotFoundException": "correct sse_kms_key_id in the URI",
    "KMS.KMSInvalidStateException": "the KMS key that objects are encrypted with is about to be deleted: cancel that",
    "QuotaExceeded": "the bucket is full: raise its quota",
    "XMinioAdminBucketQuotaExceeded": "the bucket is full: raise its quota",
}
"""By S3's code; the rest goes by status. An operator can mend each of these without a word to the broker, which goes on then."""

_ARCHIVED = frozenset({"InvalidObjectState", "ObjectNotInActiveTierError"})
"""Answers to a GET, and to a copy."""


class TryAgain(ObjectStoreError):
    """This attempt failed in a way that another may not."""


class CredentialsRefused(AccessDenied):
    """The store does not take these credentials; it may take newer ones."""


class RangeNotSatisfiable(ObjectStoreError):
    """The object is shorter than that (S3: 416)."""


def refusal(what: str, error: ClientError) -> ObjectStoreError:
    """What S3's answer means to us."""
    told: Mapping[str, Any] = error.response.get("Error", {})
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    code = str(told.get("Code", ""))
    status = int(metadata.get("HTTPStatusCode", 0))
    message = f"{what}: {status} {code} {told.get('Message', '')}".rstrip()
    if error.operation_name.startswith(("AssumeRole", "GetRoleCredentials", "GetFederationToken", "CreateToken")):
        # Not the bucket's: the chain asked AWS STS or SSO for credentials.
        if code in _PASSING or status >= 500 or status == 429:
            return TryAgain(f"{message} (of {error.operation_name})")
        return CredentialsRefused(f"{message} (of {error.operation_name}); check role, token and trust policy")
    if code == "NotImplemented" or status in (405, 501):
        return ObjectStoreError(f"{message}; this store does not know that request")
    if code in _PASSING or status >= 500 or status == 429:
        return TryAgain(message)
    if code == "RequestTimeTooSkewed":
        return AccessDenied(f"{message}; {_skew(told)}set this machine's clock, by NTP", is_advised=True)
    if code in _CREDENTIALS:
        return CredentialsRefused(f"{message}; {_ADVICE.get(code, 'renew the credentials')}")
    if code in _ADVICE:
        return AccessDenied(f"{message}; {_ADVICE[code]}", is_advised=True)
    if code.startswith("KMS."):
        return AccessDenied(f"{message}; see to the KMS key that objects are encrypted with", is_advised=True)
    if code in _ARCHIVED:
        return Archived(
            f"{message}; the object lies in an archive storage class: restore it, and end the lifecycle rule that moved it there"
        )
    if status == 404:
        return NotFound(message)
    if status == 412:
        return PreconditionFailed(message)
    if status == 409:
        return WriteConflict(message)
    if status == 416:
        return RangeNotSatisfiable(message)
    if status in (301, 307) or code in ("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        region = told.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region")
        where = f"in {region}: say region={region}" if region else "in another region: say so"
        return AccessDenied(f"{message}; the bucket is {where} in the URI", is_advised=True)
    if status in (401, 403) and "kms:" in message:
        return AccessDenied(
            f"{message}; allow it in the policy of these credentials, and in that of the KMS key", is_advised=True
        )
    if status in (401, 403):
        return AccessDenied(f"{message}; allow it in the bucket policy, or the policy of these credentials")
    return ObjectStoreError(message)


def failure(what: str, error: BaseException) -> ObjectStoreError:
    """What it means that there was no answer."""
    if isinstance(error, ssl.SSLError | SSLError):
        certificate = next((e for e in _causes(error) if hasattr(e, "verify_message")), None)
        if certificate is not None:
            return AccessDenied(
                f"{what}: the store's certificate is not trusted ({certificate.verify_message}); if its "
                "authority is your own, give that as ca=/path/to/ca.pem in the URI, or in AWS_CA_BUNDLE",
                is_advised=True,
            )
        if any("WRONG_VERSION_NUMBER" in str(e) for e in _causes(error)):
            return AccessDenied(
                f"{what}: the store does not speak TLS there; correct the endpoint in the URI", is_advised=True
            )
    if isinstance(error, _OPERATORS_MISTAKES):
        advice = "; say region=… in the URI, or in AWS_REGION" if isinstance(error, NoRegionError) else ""
        return AccessDenied(f"{what}: {_one_line(error)}{advice}", is_advised=True)
    return TryAgain(f"{what}: {_one_line(error) or type(error).__name__}")


def _skew(told: Mapping[str, Any]) -> str:
    try:
        ours = datetime.strptime(str(told["RequestTime"]), "%Y%m%dT%H%M%SZ")
        theirs = datetime.strptime(str(told["ServerTime"]), "%Y-%m-%dT%H:%M:%SZ")
    except (KeyError, ValueError):
        return ""
    ahead_s = round((ours - theirs).total_seconds())
    return f"it is {abs(ahead_s)} s {'ahead of' if ahead_s > 0 else 'behind'} the store's: "


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from; botocore keeps the latter in `kwargs`."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, getattr(one, "certificate_error", None)]
        kept = getattr(one, "kwargs", {}).get("error")
        waiting.append(kept if isinstance(kept, BaseException) else None)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
