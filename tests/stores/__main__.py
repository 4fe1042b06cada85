"""`make minio` and `make seaweedfs`: serve an object store on the loopback interface, and tell how to run Tidelog on it."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.stores.process import PROCESSES, StoreUnavailable, ended_at_last

BUCKET = "tidelog"
PORTS = {"minio": 9000, "seaweedfs": 8333}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stores", description=__doc__)
    parser.add_argument("store", choices=PROCESSES)
    parser.add_argument("--data", type=Path, help="directory for everything it keeps (default: ./data/NAME)")
    parser.add_argument("--port", type=int, help=f"on 127.0.0.1 (default: {PORTS})")
    options = parser.parse_args()
    data = (options.data or Path("data") / options.store).absolute()
    store = PROCESSES[options.store](data, options.port or PORTS[options.store])
    try:
        store.check()
    except StoreUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ended_at_last(store):
        store.start()
        store.wait_ready()
        server = store.server
        server.ensure_bucket(BUCKET)
        uri = server.uri(BUCKET, "cluster")
        environment = " ".join(f"{name}={value}" for name, value in server.environment.items())
        print(
            f"{store.title} serves S3 on {server.endpoint_url}, everything below {data}, its log in {store.log_path.name}.\n"
            f"To run Tidelog on it, without any other state, in another terminal:\n\n"
            f"export {environment}\n"
            f"BUCKET='{uri}'\n"
            f'.venv/bin/tidelog serve --set "object.store.uri=$BUCKET" --set "wal.uri=$BUCKET&batch_interval_ms=20"\n',
            flush=True,
        )
        try:
            status = store.wait()
        except (KeyboardInterrupt, SystemExit):
            store.stop()
            return 0
        print(f"{store.title} ended with {status}:\n{store.log_tail()}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
