"""TLS to a store whose authority is the operator's own, with certificates made here; and encryption at rest."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from s3stream.config import ObjectStoreSettings
from s3stream.objectstore import AccessDenied, Buffer
from s3stream.open import open_object_store
from s3stream.s3 import S3ObjectStore
from tests.s3stream.moto import QUICK, endpoint_url
from tests.s3stream.scripted import Request, answer, listening, ok


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


def opened(uri: str, settings: ObjectStoreSettings = QUICK) -> S3ObjectStore:
    store = open_object_store(uri, rng=random.Random(0), settings=settings).store
    assert isinstance(store, S3ObjectStore)
    return store


class Authority:
    """A certificate authority of one's own."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.path = directory / f"{name}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._certificate(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, address: str = "127.0.0.1") -> ssl.SSLContext:
        """What a server at an address needs."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            self._certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")]), key)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self.directory / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _certificate(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )


async def test_an_authority_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path, "ours")
    async with listening(tls=authority.server()) as server:
        uri = f"s3://bucket?region=us-east-1&path_style=true&endpoint={server.url}"
        store = opened(f"{uri}&ca={authority.path}")
        await store.put("key", [b"x" * 1_000_000])
        assert (await store.get("key")).data == b"content"
        assert server.requests[0].headers["x-amz-content-sha256"] == "unsigned-payload"
        await store.close()

        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.path))
        store = opened(uri)
        await store.get("key")
        await store.close()


async def test_what_nobody_vouches_for_is_refused_at_once(tmp_path: Path) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    async with listening(tls=ours.server()) as server:
        for ca in ("", f"&ca={other.path}"):
            store = opened(f"s3://bucket?region=us-east-1&path_style=true&endpoint={server.url}{ca}")
            with pytest.raises(AccessDenied, match=r"certificate is not trusted .*give that as ca=/path/to/ca\.pem"):
                await store.get("key")
            assert (server.requests, store.retries) == ([], 0)
            await store.close()


async def test_a_certificate_for_another_address_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    async with listening(tls=authority.server("127.0.0.2")) as server:
        store = opened(f"s3://bucket?region=us-east-1&path_style=true&endpoint={server.url}&ca={authority.path}")
        with pytest.raises(AccessDenied, match=r"IP address mismatch.*127\.0\.0\.1"):
            await store.get("key")
        await store.close()


async def test_no_tls_where_it_was_expected() -> None:
    https = endpoint_url().replace("http:", "https:")
    store = opened(f"s3://bucket?region=us-east-1&path_style=true&endpoint={https}")
    with pytest.raises(AccessDenied, match="does not speak TLS there; correct the endpoint"):
        await store.get("key")
    await store.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("sse=AES256", {"x-amz-server-side-encryption": "aes256"}),
        (
            "sse=aws:kms&sse_kms_key_id=alias/tide&sse_bucket_key=true",
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "alias/tide",
                "x-amz-server-side-encryption-bucket-key-enabled": "true",
            },
        ),
        ("", {}),
    ],
)
async def test_encryption_goes_with_all_that_is_written(options: str, expected: dict[str, str]) -> None:
    def s3(request: Request) -> bytes | None:
        if request.method == "POST" and request.target.endswith("?uploads"):
            return answer("200 OK", b"<R><UploadId>id</UploadId></R>")
        return answer("200 OK", b"<R><ETag>x</ETag></R>") if request.method == "POST" else ok(request)

    async def large() -> AsyncIterator[Buffer]:
        yield bytes(QUICK.multipart_part_size_bytes + 1)

    async with listening(s3) as server:
        store = opened(f"s3://bucket?region=us-east-1&path_style=true&endpoint={server.url}&{options}")
        await store.put("key", [b"x"])
        await store.put_if_absent("key", [b"x"])
        await store.put_if_match("key", [b"x"], '"tag"')
        await store.put_multipart("key", large())
        await store.get("key")
        sent = [
            (
                f"{request.method} {request.target.partition('?')[2].partition('=')[0]}".strip(),
                {name: value for name, value in request.headers.items() if "encryption" in name},
            )
            for request in server.requests
        ]
        assert sent == [
            ("PUT", expected),
            ("PUT", expected),
            ("PUT", expected),
            ("POST uploads", expected),
            ("PUT uploadId", {}),  # goes as the upload was begun
            ("PUT uploadId", {}),
            ("POST uploadId", {}),
            ("GET", {}),
        ]
        await store.close()


async def test_virtual_hosts_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **options: look_up("127.0.0.1", *rest, **options)
    )  # so that hosts need no DNS
    async with listening() as server:
        port = server.url.rpartition(":")[2]
        for options, host, target in (
            ("path_style=true", f"store.test:{port}", "/bucket/some/key"),
            ("path_style=false", f"bucket.store.test:{port}", "/some/key"),
        ):
            store = opened(f"s3://bucket?region=us-east-1&endpoint=http://store.test:{port}&{options}")
            await store.put("some/key", [b"x"])
            await store.get_range("some/key", 0, 5)  # by a lane of its own
            for request in server.requests[-2:]:
                assert (request.headers["host"], request.target) == (host, target)
            await store.close()
