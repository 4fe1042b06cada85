"""One module per Kafka API, all of one shape: versions, behaviour, deviations, what is not done, then the handler.

A handler is `handle(broker, connection, call, request)` and returns the response, or a coroutine that will (run as a task
that the connection owns), or None where it answers by `connection.finish` later. Produce is different: see there.
"""
