"""Where credentials come from, and that nobody notices when they end. The signature's key tells which were used."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from s3stream.config import ObjectStoreSettings
from s3stream.objectstore import AccessDenied
from s3stream.open import open_object_store
from s3stream.s3 import S3ObjectStore
from s3stream.s3_credentials import RENEW_INTERVAL_S
from tests.s3stream.scripted import Answer, Request, Server, answer, error, listening, ok

SETTINGS = ObjectStoreSettings(
    request_timeout_ms=5_000, deadline_ms=10_000, retry_first_delay_ms=10, retry_max_delay_ms=200
)
IMPATIENT = ObjectStoreSettings(
    request_timeout_ms=1_500, deadline_ms=2_000, retry_first_delay_ms=1, retry_max_delay_ms=50
)

_KEY = re.compile(r"credential=([^/]+)/")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No source of credentials at all but what a test sets up."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def opened(server: Server, options: str = "", settings: ObjectStoreSettings = SETTINGS) -> S3ObjectStore:
    uri = f"s3://bucket?region=us-east-1&path_style=true&endpoint={server.url}{options}"
    store = open_object_store(uri, rng=random.Random(0), settings=settings).store
    assert isinstance(store, S3ObjectStore)
    return store


def key_of(request: Request) -> str:
    match = _KEY.search(request.headers.get("authorization", ""))
    return match[1] if match else ""


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_a_minute() -> str:
    """Less than botocore's margin: such credentials are renewed before each request."""
    return (datetime.now(UTC) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Issuer:
    """Hands out credentials, numbered; a server takes the newest only."""

    def __init__(self, expires: Callable[[], str], names: tuple[str, str, str, str]) -> None:
        self.expires = expires
        self.names = names
        self.issued = 0

    def __call__(self, _: Request) -> bytes:
        self.issued += 1
        key, secret, token, expiration = self.names
        found = {
            "Code": "Success",
            key: f"key{self.issued}",
            secret: "secret",
            token: f"token{self.issued}",
            expiration: self.expires(),
        }
        return answer("200 OK", json.dumps(found).encode(), Content_Type="application/json")


HTTP_NAMES = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")


def takes_only(wanted: Callable[[], str], code: str = "ExpiredToken") -> Answer:
    """A store that refuses all credentials but one."""
    refused = error("403 Forbidden" if code != "ExpiredToken" else "400 Bad Request", code)
    return lambda request: ok(request) if key_of(request) == wanted() else refused(request)


# ---- sources


async def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fromenv")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session")
    async with listening(takes_only(lambda: "fromenv")) as server:
        store = opened(server)
        await store.get("key")
        assert server.requests[0].headers["x-amz-security-token"] == "session"
        await store.close()


async def test_from_a_profile_of_the_shared_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id=fromdefault\naws_secret_access_key=x\n"
        "[tide]\naws_access_key_id=fromtide\naws_secret_access_key=x\n"
    )
    async with listening() as server:
        for options, environment in (("", ""), ("&profile=tide", ""), ("", "tide")):
            monkeypatch.setenv("AWS_PROFILE", environment) if environment else None
            store = opened(server, options)
            await store.get("key")
            await store.close()
        assert [key_of(request) for request in server.requests] == ["fromdefault", "fromtide", "fromtide"]


async def test_from_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(Issuer(in_an_hour, HTTP_NAMES)) as container, listening(takes_only(lambda: "key1")) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{container.url}/credentials")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "mine")
        store = opened(server)
        await store.get("key")
        await store.get("key")
        assert [request.target for request in container.requests] == ["/credentials"]
        assert container.requests[0].headers["authorization"] == "mine"
        await store.close()


async def test_from_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer(in_an_hour, HTTP_NAMES)

    def metadata(request: Request) -> bytes:
        if request.method == "PUT":
            return answer("200 OK", b"imds-token")
        assert request.headers["x-aws-ec2-metadata-token"] == "imds-token"
        return answer("200 OK", b"role") if request.target.endswith("/security-credentials/") else issuer(request)

    async with listening(metadata) as instance, listening(takes_only(lambda: "key1")) as server:
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url)
        store = opened(server)
        await store.get("key")
        assert instance.requests[-1].target.endswith("/iam/security-credentials/role")
        await store.close()


async def test_from_a_web_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("a.signed.token")
    body = (
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>fromrole"
        "</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>session</SessionToken><Expiration>"
        f"{in_an_hour()}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    ).encode()
    async with (
        listening(lambda _: answer("200 OK", body, Content_Type="text/xml")) as sts,
        listening(takes_only(lambda: "fromrole")) as server,
    ):
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/tide")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        store = opened(server)
        await store.get("key")
        assert b"a.signed.token" in sts.requests[0].body
        await store.close()

        sts.otherwise = error("403 Forbidden", "AccessDenied")
        store = opened(server)
        with pytest.raises(AccessDenied, match=r"AssumeRoleWithWebIdentity\); check role, token and trust policy"):
            await store.get("key")
        await store.close()


def a_process(tmp_path: Path, expires: str) -> Path:
    """A `credential_process` that numbers what it hands out; returns where the last number is."""
    counter = tmp_path / "counter"
    script = tmp_path / "hand_out.py"
    script.write_text(
        f"import json, pathlib\ncounter = pathlib.Path({str(counter)!r})\n"
        "number = int(counter.read_text()) + 1 if counter.exists() else 1\ncounter.write_text(str(number))\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'key{number}', 'SecretAccessKey': 'x', 'SessionToken': 'x', "
        f"'Expiration': {expires!r}}}))\n"
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    return counter


async def test_from_a_process_that_hands_out_short_ones(tmp_path: Path) -> None:
    counter = a_process(tmp_path, in_a_minute())
    async with listening(takes_only(lambda: f"key{counter.read_text()}")) as server:
        store = opened(server)
        for _ in range(3):
            await store.get("key")
        keys = [key_of(request) for request in server.requests]
        assert len(set(keys)) == 3, "each was renewed before it was refused"
        assert store.retries == 0
        await store.close()


# ---- what ends while it is used


async def test_a_container_whose_credentials_live_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer(in_a_minute, HTTP_NAMES)
    async with listening(issuer) as container, listening(takes_only(lambda: f"key{issuer.issued}")) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{container.url}/credentials")
        store = opened(server)
        for _ in range(3):
            await store.put("key", [b"x"])
        assert store.retries == 0
        await store.close()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
async def test_those_that_are_refused_before_their_time_are_renewed(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    wanted = "key1"
    async with (
        listening(Issuer(in_an_hour, HTTP_NAMES)) as container,
        listening(takes_only(lambda: wanted, code)) as server,
    ):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{container.url}/credentials")
        store = opened(server)
        await store.put("key", [b"x"])
        wanted = "key2"
        await store.put("key", [b"y"])
        assert [key_of(request) for request in server.requests] == ["key1", "key1", "key2"]
        await store.close()


async def test_a_file_that_is_rewritten_meanwhile_is_read_anew(tmp_path: Path) -> None:
    wanted = "old"

    def rewrite(key: str) -> None:
        (tmp_path / "credentials").write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=x\n")

    def takes(request: Request) -> bytes | None:
        nonlocal refusals
        if key_of(request) == wanted:
            return ok(request)
        refusals += 1
        if refusals == 4:
            rewrite("new")
        return error("400 Bad Request", "ExpiredToken")(request)

    refusals = 0
    rewrite("old")
    async with listening(takes) as server:
        store = opened(server)
        await store.get("key")
        wanted = "new"
        await store.get("key")  # refused until something has rewritten the file, then well
        assert refusals >= 4
        await store.close()


async def test_those_that_stay_refused_are_told_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "fromenv")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    wanted = "fromenv"
    async with listening(takes_only(lambda: wanted)) as server:
        store = opened(server, settings=IMPATIENT)
        await store.get("key")
        wanted = "other"
        with pytest.raises(AccessDenied, match="ExpiredToken because; renew the credentials"):
            await store.get("key")
        assert store.retries > 1
        await store.close()


# ---- none, or wrong ones, at the start: told at once


async def test_none_at_all() -> None:
    async with listening() as server:
        store = opened(server)
        with pytest.raises(AccessDenied, match="Unable to locate credentials: set AWS_ACCESS_KEY_ID"):
            await store.get("key")
        assert (server.requests, store.retries) == ([], 0)
        await store.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[default]\ncredential_process = /no/such/program", "credentials cannot be had: .*No such file"),
        ("[default]\ncredential_process = /bin/false", "credentials cannot be had: Error when retrieving"),
        ("[default]\ncredential_process = /bin/echo nonsense", "credentials cannot be had: JSONDecodeError"),
        ("[default]\naws_access_key_id = half", "Partial credentials found"),
        ("[nonsense", "Unable to parse config file"),
    ],
)
async def test_sources_that_do_not_work(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "config").write_text(config)
    async with listening() as server:
        store = opened(server)
        with pytest.raises(AccessDenied, match=message):
            await store.get("key")
        assert store.retries == 0
        await store.close()


async def test_a_profile_that_is_not_there() -> None:
    async with listening() as server:
        store = opened(server, "&profile=tide")
        with pytest.raises(AccessDenied, match=r"profile \(tide\) could not be found"):
            await store.get("key")
        await store.close()


async def test_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for code, advice in (
        ("InvalidAccessKeyId", "check the access key"),
        ("SignatureDoesNotMatch", "check the secret key"),
    ):
        async with listening(takes_only(lambda: "right", code)) as server:
            store = opened(server)
            with pytest.raises(AccessDenied, match=advice):
                await store.get("key")
            assert store.retries == 0
            await store.close()


def test_the_chain_is_not_asked_at_every_refusal() -> None:
    assert RENEW_INTERVAL_S >= 1
