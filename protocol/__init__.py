"""Kafka's wire protocol: bytes to messages and back, without I/O.

    types, messages/<api>   the declarations, which are the schema (start with messages/fetch.py)
    schema                  a declaration and a version -> a layout
    decoder, encoder        a layout -> Python source; compiler loads it, runtime is what it calls
    apis, frames            the doors: decode_request, encode_response and their mirror images; headers
    records                 record batch headers: parse, check, stamp
    record_set, compression the records inside batches
    errors                  Kafka's error codes, and `Malformed`

    header = frames.parse_request_header(frame)
    request = apis.decode_request(header.api_key, header.api_version, frame, header.body_position)
    transport.writelines(apis.encode_response(header.api_key, header.api_version, header.correlation_id, response))

Always true here: no other package of this project is imported, nothing reads a clock or a socket, and bytes from outside
raise `errors.ProtocolError` or nothing (I14).
"""
