"""A gRPC server. Arguments: certificate and key, or "-" twice for none, and addresses to listen on.

Says "ready" once it listens, "waiting" when a call of Wait comes, and "cancelled" when that is given up by its client.
"""

import concurrent.futures
import sys
import threading

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-first", metadata.get("x-sent", "")),))
    context.set_trailing_metadata((("x-last", "end"), ("x-bin", b"\x00\xff")))
    return request


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: 100 %")


def wait(request, context):
    print("waiting", flush=True)
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(30)
    print("cancelled", flush=True)
    return b""


def remaining(request, context):
    """How many seconds the client has left for this call."""
    return str(context.time_remaining()).encode()


together = threading.Barrier(10)


def meet(request, context):
    """Ends when ten calls are under way."""
    together.wait(20)
    return request


def echo(requests, context):
    for request in requests:
        yield request


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/test.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail),
            "/test.Echo/Meet": grpc.unary_unary_rpc_method_handler(meet),
            "/test.Echo/Wait": grpc.unary_unary_rpc_method_handler(wait),
            "/test.Echo/Remaining": grpc.unary_unary_rpc_method_handler(remaining),
            "/test.Echo/Stream": grpc.stream_stream_rpc_method_handler(echo),
        }.get(details.method)


certificate, key, *addresses = sys.argv[1:]
server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
server.add_generic_rpc_handlers((Echo(),))
for address in addresses:
    if certificate == "-":
        server.add_insecure_port(address)
    else:
        with open(certificate, "rb") as certificate_file, open(key, "rb") as key_file:
            pair = (key_file.read(), certificate_file.read())
        server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
server.start()
print("ready", flush=True)
server.wait_for_termination()
