"""A collector that takes OTLP over HTTP and remembers the spans."""

import contextlib
import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


class Collector:
    """.url: where it listens. .spans(): what came so far. .headers: of each request. slow: seconds before it answers.

    status: what it answers.
    """

    def __init__(self, slow=0.0, status=200):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self._requests, self.headers, self.paths, self._ended = [], [], [], threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._ended.wait(slow)
                if status == 200:
                    collector._requests.append(ExportTraceServiceRequest.FromString(body))
                collector.headers.append(dict(self.headers))
                collector.paths.append(self.path)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self):
        """Return every span that came, with its attributes, and the resource's, as a dictionary."""
        return [
            SimpleNamespace(
                name=span.name,
                kind=span.kind,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                state=span.trace_state,
                start=span.start_time_unix_nano,
                end=span.end_time_unix_nano,
                failed=span.status.code == 2,
                attributes=values_of(span.attributes),
                resource=values_of(group.resource.attributes),
            )
            for request in list(self._requests)
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def roots(self):
        return [span for span in self.spans() if span.kind == 2]

    def parts_of(self, span):
        return sorted((each for each in self.spans() if each.parent == span.id), key=lambda each: each.start)

    def wait_for(self, roots, seconds=20):
        """Return the spans of requests, once there are as many."""
        end = time.monotonic() + seconds
        while len(found := self.roots()) < roots:
            assert time.monotonic() < end, f"{len(found)} of {roots} requests were traced"
            time.sleep(0.02)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


def values_of(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
