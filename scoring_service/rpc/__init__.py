"""gRPC: protobuf to plain types and back. The only room that knows protobuf."""
