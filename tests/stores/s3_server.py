"""An S3 server as tests use it: where it is, who may use it, and a new bucket for each test.

Made by botocore, not by our own client, so that what is prepared and counted here does not depend on what is tested.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from botocore.config import Config
from botocore.session import get_session

from s3stream.config import ObjectStoreSettings
from s3stream.s3 import S3ObjectStore

__all__ = ["ACCESS_KEY_ID", "QUICK", "READER_ACCESS_KEY_ID", "REGION", "SECRET_ACCESS_KEY", "S3Server"]

REGION = "us-east-1"
ACCESS_KEY_ID = "tidelog"
READER_ACCESS_KEY_ID = "tidelog-reader"
SECRET_ACCESS_KEY = "tidelog-secret"
"""The same for every server, so that one environment does for all of them."""
QUICK = ObjectStoreSettings(
    request_timeout_ms=10_000, deadline_ms=10_000, retry_first_delay_ms=1, retry_max_delay_ms=10
)
_numbers = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A server that speaks S3, where our credentials may do everything."""

    name: str
    endpoint_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Credentials where AWS's own tools look for them."""
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}

    def reader_environment(self) -> dict[str, str]:
        """Credentials that may read everything, and write nothing."""
        if self.name == "seaweedfs":
            return {"AWS_ACCESS_KEY_ID": READER_ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}
        sts = get_session().create_client(
            "sts",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
        )
        reading = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "arn:aws:s3:::*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [reading]})
        given = sts.assume_role(RoleArn="arn:aws:iam::1:role/reader", RoleSessionName="reader", Policy=policy)
        sts.close()
        return {
            "AWS_ACCESS_KEY_ID": given["Credentials"]["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": given["Credentials"]["SecretAccessKey"],
            "AWS_SESSION_TOKEN": given["Credentials"]["SessionToken"],
        }

    def new_bucket(self) -> str:
        """Name of a new, empty bucket."""
        bucket = f"new-{next(_numbers)}"
        self.client.create_bucket(Bucket=bucket)
        return bucket

    def ensure_bucket(self, name: str) -> None:
        """Create a bucket, unless it is there."""
        with contextlib.suppress(
            self.client.exceptions.BucketAlreadyOwnedByYou, self.client.exceptions.BucketAlreadyExists
        ):
            self.client.create_bucket(Bucket=name)

    def uri(self, bucket: str, prefix: str = "some/prefix") -> str:
        """What a user would write as `object.store.uri`."""
        options = urlencode({"region": REGION, "path_style": "true", "endpoint": self.endpoint_url}, safe=":/")
        return f"s3://{bucket}/{prefix}?{options}"

    def open(self, bucket: str, settings: ObjectStoreSettings = QUICK) -> S3ObjectStore:
        """Our own client of a bucket."""
        return S3ObjectStore(
            bucket,
            rng=random.Random(0),
            settings=settings,
            endpoint_url=self.endpoint_url,
            region=REGION,
            path_style=True,
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET_ACCESS_KEY,
        )

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of all objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    @property
    def client(self) -> Any:
        """botocore's client, which is slow to make."""
        return _client(self)


@functools.cache
def _client(server: S3Server) -> Any:
    return get_session().create_client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
        config=Config(
            s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}
        ),
    )
