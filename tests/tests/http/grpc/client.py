"""A gRPC client. Arguments: the address to connect to, the host to ask for, and what to do. Prints a line for each result."""

import queue
import sys

import grpc

address, host, action = sys.argv[1:]
options = [("grpc.default_authority", host), ("grpc.enable_http_proxy", 0)]
channel = grpc.insecure_channel(address, options=options)
METHOD = "/test.Echo/"


def call(method, request=b"hello", timeout=15):
    try:
        response, call = channel.unary_unary(METHOD + method).with_call(
            request, timeout=timeout, metadata=(("x-sent", "first"),)
        )
        trailing = dict(call.trailing_metadata())
        first = dict(call.initial_metadata()).get("x-first")
        print("OK", len(response), first, trailing.get("x-last"), trailing.get("x-bin"), flush=True)
    except grpc.RpcError as error:
        print(error.code().name, error.details(), flush=True)


def lines():
    """What comes on standard input, as a stream of requests, and what each is answered."""
    requests = queue.Queue()
    responses = channel.stream_stream(METHOD + "Stream")(iter(requests.get, None), timeout=30)
    for line in sys.stdin:
        requests.put(line.strip().encode())
        print("echo", next(responses).decode(), flush=True)
    requests.put(None)
    print("rest", list(responses), flush=True)


if action == "all":
    call("Unary")
    call("Unary", b"x" * 3_000_000)
    call("Fail")
    call("None")
elif action == "lines":
    lines()
elif action == "meet":
    calls = [channel.unary_unary(METHOD + "Meet").future(b"%d" % number, timeout=30) for number in range(10)]
    print(*(call.result().decode() for call in calls), flush=True)
elif action == "remaining":
    print(channel.unary_unary(METHOD + "Remaining")(b"", timeout=15).decode(), flush=True)
elif action == "deadline":
    call("Wait", timeout=1)
elif action == "cancel":
    under_way = channel.unary_unary(METHOD + "Wait").future(b"")
    sys.stdin.readline()
    print(under_way.cancel(), flush=True)
elif action == "repeat":
    # Until standard input ends.
    for line in sys.stdin:
        call("Unary")
else:
    sys.exit(f"no such action: {action}")
