"""Bounds of the gateway towards one session. Every wait has an end, and every buffer a size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    connections: int = 32
    """Open at once for one session; the next one is turned away with 503."""
    head_bytes: int = 32 * 1024
    body_bytes: int = 64 * 1024 * 1024
    """Of one request; counted while it streams. Answers are streamed without a limit."""
    head_s: float = 10.0
    """From a head's first byte to its last."""
    idle_s: float = 120.0
    """Between two requests on one connection."""
    body_quiet_s: float = 30.0
    """Between two pieces of a request's body."""
    agent_write_s: float = 300.0
    """For an agent to take a piece of an answer."""
    connect_s: float = 10.0
    """For an upstream's TCP and TLS handshakes."""
    upstream_write_s: float = 30.0
    """For an upstream to take a piece of a request."""
    upstream_quiet_s: float = 600.0
    """For an upstream to say the next thing. Models think for minutes before the first byte of a plain answer."""
