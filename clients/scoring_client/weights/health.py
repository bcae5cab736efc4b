"""Whether a server takes updates, as grpc.health.v1 says it.

Its two messages are one field each and are written out here, so that the client needs no package
for them: https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

import grpc

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVICE = b"scoring.v1.AdminService"
REQUEST = b"\x0a" + bytes([len(_SERVICE)]) + _SERVICE
"""HealthCheckRequest{service: 1}."""
SERVING = b"\x08\x01"
"""HealthCheckResponse{status: 1}, SERVING."""
NOT_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Statuses of a server that is being started, or is gone."""
