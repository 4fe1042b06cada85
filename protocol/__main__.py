"""`python -m protocol list` and `python -m protocol show Fetch 12`: what is spoken, and the code generated for it."""

from __future__ import annotations

import argparse
import sys

from protocol.apis import API, api_named
from protocol.compiler import compile_decoder, compile_encoder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m protocol", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="APIs and their versions")
    show = commands.add_parser("show", help="the source generated for one API and version")
    show.add_argument("name", help="Kafka's name, for example Fetch")
    show.add_argument("version", type=int)
    options = parser.parse_args(arguments)
    if options.command == "list":
        for api in sorted(API.values(), key=lambda api: api.key):
            print(
                f"{api.key:4} {api.name:<20} v{api.min_version}-{api.max_version}, flexible from v{api.flexible_since}"
            )
        return 0
    try:
        api = api_named(options.name)
    except KeyError:
        print(f"no API is called {options.name!r}; try `python -m protocol list`", file=sys.stderr)
        return 2
    if not api.supports(options.version):
        print(f"{api.name} is spoken in v{api.min_version}-{api.max_version}", file=sys.stderr)
        return 2
    flexible = options.version >= api.flexible_since
    print(compile_decoder(api.request, options.version, flexible).source)
    print(compile_encoder(api.request, options.version, flexible).source)
    print(compile_decoder(api.response, options.version, flexible, max_elements=None).source)
    print(compile_encoder(api.response, options.version, flexible).source)
    return 0


if __name__ == "__main__":
    sys.exit(main())
