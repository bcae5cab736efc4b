"""gRPC: protobuf to plain types and back. The only room that knows protobuf."""

import os

# Read by gRPC when it is loaded. It tells of each connection that is no TLS, unasked and unbounded;
# what matters of it the server says itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
